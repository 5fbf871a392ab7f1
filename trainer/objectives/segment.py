"""caption -> mask, supervised."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.objectives.judging import POINTS_PER_SIDE, Judged, compare_masks, first_texts
from trainer.objectives.objective import Objective
from trainer.objectives.passes import Batch


class Segment(Objective):
    """The mask of each object in frame 1, asked for with one of its texts."""

    training_fields = ("pixel_values1", "g_pixel_values1", "masks1")
    judging_fields = training_fields
    needs = "texts"
    loss_weights: ClassVar = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang"}
    target_frame = 1

    def losses(self, batch: Batch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes, model = self.passes, self.passes.model
        rows = passes.question(batch, passes.chosen_texts(batch), draws)
        visual_tokens = model.encode_image(batch["pixel_values1"])
        sam_features = model.encode_sam(batch["g_pixel_values1"])
        logits, lang = passes.segment(batch, rows, visual_tokens, sam_features)
        return {**passes.mask_losses(logits, batch["masks1"], draws), "lang": lang}

    def judge(self, batch: Batch, side: int = POINTS_PER_SIDE) -> Judged:
        """Segment frame 1 from the first text."""
        passes, model = self.passes, self.passes.model
        captions = first_texts(batch)
        visual_tokens = model.encode_image(batch["pixel_values1"])
        sam_features = model.encode_sam(batch["g_pixel_values1"])
        logits, _ = passes.segment(batch, passes.question(batch, captions, None), visual_tokens, sam_features)
        return Judged(compare_masks(logits, batch["masks1"], side), captions, logits)
