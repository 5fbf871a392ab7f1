"""caption -> mask -> caption: the mask that a caption leads to must let the caption be told again."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.passes import Batch, Passes, cross_entropy, full_precision

_LEAST_CELLS = 4  # as the recipe's: a region of fewer says too little


def reverse_loop(passes: Passes, batch: Batch, draws: list[torch.Generator]) -> dict[str, Tensor]:
    """`caption`, (): the cross-entropy of each object's text, told of the mask that the model found for it.

    Args:
        batch: on the device; frame 1 serves for both passes.
        draws: a generator an object.
    """
    model = passes.model
    texts = passes.chosen_texts(batch)
    visual_tokens, sam_features = model.encode_image(batch["pixel_values1"]), model.encode_sam(batch["g_pixel_values1"])
    logits, _ = passes.segment(batch, passes.question(batch, texts, draws), visual_tokens, sam_features)
    regions, scale = cells_of_logits(logits)
    answers = [passes.tokens_of(text) for text in texts]
    told, targets, row_of = passes.describe(batch, visual_tokens, regions, answers, answers, scale)
    return {"caption": cross_entropy(told, targets, row_of, len(texts))}


def cells_of_logits(logits: Tensor, grid: int = 16) -> tuple[Tensor, Tensor]:
    """The cells of a predicted mask, and factors that carry its gradient.

    A cell is on where the logit at its centre is above 0, as the recipe `default` takes it from a mask; where fewer
    than 4 are, the likeliest cells are switched on until 4 are. The choice has no gradient, so the chosen cells'
    visual tokens are multiplied by 1 + (p - p.detach()), p the cell's mean probability: exactly 1 forward, the gradient
    of p backward (straight-through; Bengio et al. 2013).

    Args:
        logits: (M, S, S), S a multiple of `grid`.

    Returns:
        (M, grid, grid) bool, and (M, grid, grid) float32.
    """
    step = logits.shape[-1] // grid
    with full_precision(logits):
        probability = logits.float().sigmoid().unflatten(2, (grid, step)).unflatten(1, (grid, step)).mean((2, 4))
    with torch.no_grad():
        cells = logits[:, step // 2 :: step, step // 2 :: step] > 0
        likeliest = probability.masked_fill(cells, 2).flatten(1).topk(_LEAST_CELLS).indices
        cells = cells.flatten(1).scatter(1, likeliest, True).view_as(cells)
    return cells, 1 + (probability - probability.detach())
