"""Objective segment: text -> mask, supervised."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.batch import PairBatch, required
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, compare_masks, first_texts
from trainer.objectives.objective import Objective


class Segment(Objective[PairBatch]):
    """The mask of each object in frame 1, asked for with one of its texts."""

    training_fields = ("pixel_values1", "g_pixel_values1", "masks1")
    judging_fields = training_fields
    needs = "texts"
    loss_weights: ClassVar = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang"}
    target_frame = 1

    def losses(self, batch: PairBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes = self.passes
        logits, lang, _ = passes.segment_texts(batch, passes.chosen_texts(batch), draws)
        return {**passes.mask_losses(logits, required(batch.frames[0].masks), draws), "lang": lang}

    def judge(self, batch: PairBatch, side: int = POINTS_PER_SIDE) -> Judged:
        """Segment frame 1 from the first text."""
        passes = self.passes
        captions = first_texts(batch)
        logits, _, _ = passes.segment_texts(batch, captions, None)
        return Judged(compare_masks(logits, required(batch.frames[0].masks), side), captions, logits)
