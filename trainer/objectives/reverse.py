"""Objective reverse: text -> mask -> text. From the mask predicted for a text the model must write the text again."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.batch import PairBatch, required
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, caption_losses, compare_masks, first_texts
from trainer.objectives.objective import Objective
from trainer.objectives.passes import cross_entropy, full_precision

_LEAST_CELLS = 4  # as in the recipe `default`: a region of fewer carries too little


class Reverse(Objective[PairBatch]):
    """The text of each object, asked for with the mask that the model predicts from it; frame 1 serves for both."""

    training_fields = ("pixel_values1", "g_pixel_values1")
    judging_fields = ("pixel_values1", "g_pixel_values1", "masks1")
    needs = "texts"
    loss_weights: ClassVar = {"caption": 1.0}
    target_frame = 1
    projected = True

    def losses(self, batch: PairBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes = self.passes
        texts = passes.chosen_texts(batch)
        logits, _, visual_tokens = passes.segment_texts(batch, texts, draws)
        regions, scale = cells_from_logits(logits)
        answers = [passes.caption_tokens(text) for text in texts]
        answer_logits, targets, row_of = passes.caption_logits(batch, visual_tokens, regions, answers, answers, scale)
        return {"caption": cross_entropy(answer_logits, targets, row_of, len(texts))}

    def judge(self, batch: PairBatch, side: int = POINTS_PER_SIDE) -> Judged:
        """Segment frame 1 from the first text; then the cross-entropy of the text, given the predicted mask."""
        passes = self.passes
        captions = first_texts(batch)
        logits, _, visual_tokens = passes.segment_texts(batch, captions, None)
        values = compare_masks(logits, required(batch.frames[0].masks), side)
        values |= caption_losses(passes, batch, visual_tokens, captions, cells_from_logits(logits)[0])
        return Judged(values, captions, logits)


def cells_from_logits(logits: Tensor, grid: int = 16) -> tuple[Tensor, Tensor]:
    """Cells of a predicted mask, and factors that carry its gradient.

    A cell is on if the logit at its centre is above 0, as the recipe `default` takes cells of a mask. If fewer than 4
    are on, the most probable cells are switched on until 4 are. The choice has no gradient, so the visual tokens of
    the chosen cells are multiplied by 1 + (p - p.detach()), where p is the cell's mean probability: exactly 1 forward,
    the gradient of p backward (straight-through; Bengio et al. 2013).

    Args:
        logits: (M, S, S), S a multiple of `grid`.

    Returns:
        Cells, (M, grid, grid) bool, and factors, (M, grid, grid) float32.
    """
    step = logits.shape[-1] // grid
    with full_precision(logits):
        probability = logits.float().sigmoid().unflatten(2, (grid, step)).unflatten(1, (grid, step)).mean((2, 4))
    with torch.no_grad():
        cells = logits[:, step // 2 :: step, step // 2 :: step] > 0
        likely = probability.masked_fill(cells, 2).flatten(1).topk(_LEAST_CELLS).indices
        cells = cells.flatten(1).scatter(1, likely, True).view_as(cells)
    return cells, 1 + (probability - probability.detach())
