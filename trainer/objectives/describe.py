"""Objective describe: mask -> text, supervised."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.batch import PairBatch, required
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, caption_losses, first_texts
from trainer.objectives.objective import Objective
from trainer.objectives.passes import cross_entropy


class Describe(Objective[PairBatch]):
    """The text of each object, asked for with its region in frame 1."""

    training_fields = ("pixel_values1", "prompt_masks1")
    judging_fields = training_fields
    needs = "texts"
    loss_weights: ClassVar = {"caption": 1.0}
    unreached_parts = ("text_hidden_fcs", "sam_mask_decoder", "sam_image_encoder")
    shows_region = True

    def losses(self, batch: PairBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes = self.passes
        answers = [passes.caption_tokens(text) for text in passes.chosen_texts(batch)]
        regions = required(batch.frames[0].prompt_masks)
        visual_tokens = passes.encode_image(batch.frames[0])
        logits, targets, row_of = passes.caption_logits(batch, visual_tokens, regions, answers, answers)
        return {"caption": cross_entropy(logits, targets, row_of, len(answers))}

    def judge(self, batch: PairBatch, side: int = POINTS_PER_SIDE) -> Judged:
        """The cross-entropy of the first text, given the region."""
        captions = first_texts(batch)
        regions = required(batch.frames[0].prompt_masks)
        visual_tokens = self.passes.encode_image(batch.frames[0])
        values = caption_losses(self.passes, batch, visual_tokens, captions, regions)
        return Judged(values, captions, None)
