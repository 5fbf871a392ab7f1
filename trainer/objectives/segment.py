"""Objective segment: text -> mask, supervised."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.batch import Batch, required
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, compare_masks, first_texts
from trainer.objectives.objective import Objective


class Segment(Objective):
    """The mask of each object in frame 1, asked for with one of its texts."""

    training_fields = ("pixel_values1", "g_pixel_values1", "masks1")
    judging_fields = training_fields
    needs = "texts"
    loss_weights: ClassVar = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang"}
    target_frame = 1

    def losses(self, batch: Batch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes = self.passes
        frame = batch.frames[0]
        rows = passes.segmentation_rows(batch, passes.chosen_texts(batch), draws)
        visual_tokens = passes.encode_image(frame)
        sam_features = passes.encode_sam(frame)
        logits, lang = passes.predict_masks(batch, rows, visual_tokens, sam_features)
        return {**passes.mask_losses(logits, required(frame.masks), draws), "lang": lang}

    def judge(self, batch: Batch, side: int = POINTS_PER_SIDE) -> Judged:
        """Segment frame 1 from the first text."""
        passes = self.passes
        frame = batch.frames[0]
        captions = first_texts(batch)
        rows = passes.segmentation_rows(batch, captions, None)
        visual_tokens = passes.encode_image(frame)
        sam_features = passes.encode_sam(frame)
        logits, _ = passes.predict_masks(batch, rows, visual_tokens, sam_features)
        return Judged(compare_masks(logits, required(frame.masks), side), captions, logits)
