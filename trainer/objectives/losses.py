"""Mask losses at sampled points, which compare prediction and truth without resizing either.

Predicted logits are (N, 256, 256), ground truth is (N, 1024, 1024) bool. Both are sampled at the same points of the
unit square: the logits bilinearly, the truth at the pixel that contains the point.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.objectives.noise import uniform
from trainer.transfer import to_device

Beyond = Literal["border", "zeros"]
"""What lies around a picture: the values at its border go on, or there are zeros."""
NOT_COMPARABLE = (
    "bce and dice of training are taken mostly at uncertain points, and bce is often 2 to 3 times that of held-out "
    "samples; bce_uniform and dice_uniform are taken as the held-out ones are, and compare with them"
)


def logits_at(logits: Tensor, points: Tensor, beyond: Beyond = "border") -> Tensor:
    """Sample logits (N, h, w) bilinearly at points (N, P, 2), x and y in [0, 1]: (N, P).

    Pixel centres lie at (i + 0.5) / size. Beyond the outermost centres the border value is taken, as in bilinear
    upsampling; or 0.
    """
    grid = 2 * points[:, :, None] - 1
    values = F.grid_sample(logits[:, None], grid, mode="bilinear", padding_mode=beyond, align_corners=False)
    return values[:, 0, :, 0]


def truth_at(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks (N, H, W) bool at points (N, P, 2), x and y in [0, 1]: (N, P) bool."""
    height, width = masks.shape[1:]
    x = (points[..., 0] * width).long().clamp_(0, width - 1)
    y = (points[..., 1] * height).long().clamp_(0, height - 1)
    return masks.flatten(1).gather(1, y * width + x)


def regular_points(count: int, side: int, device: torch.device) -> Tensor:
    """The centres of a side x side grid, for `count` masks: (count, side * side, 2)."""
    centres = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2).expand(count, -1, -1)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample: float,
    importance: float,
    generators: list[torch.Generator],
    beyond: Beyond = "border",
) -> Tensor:
    """Draw points (N, num_points, 2), most of them where logits are closest to 0 (PointRend, Kirillov et al. 2020).

    The `importance * num_points` most uncertain of `oversample * num_points` uniform candidates are taken; the rest is
    uniform. `beyond`: see `logits_at`.
    """
    uncertain = int(num_points * importance)
    candidates = to_device(uniform(generators, int(num_points * oversample), 2), logits.device)
    uncertainty = -logits_at(logits, candidates, beyond).abs()
    best = uncertainty.topk(uncertain, dim=1).indices
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, to_device(uniform(generators, num_points - uncertain, 2), logits.device)], 1)


def point_losses(logits: Tensor, masks: Tensor, points: Tensor, beyond: Beyond = "border") -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss (smoothing 1; Milletari et al. 2016) per mask, (N,) float32 each.

    Args:
        logits: (N, h, w).
        masks: (N, H, W) bool.
        points: (N, P, 2) in [0, 1].
        beyond: see `logits_at`.
    """
    return _losses(logits_at(logits.float(), points, beyond), truth_at(masks, points))


@torch.no_grad()
def even_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """`point_losses` at the centres of the logits' pixels, as in an evaluation, without gradient.

    They are smaller than at uncertain points, which lie where the prediction is worst.

    Args:
        logits: (N, s, s).
        masks: (N, H, W) bool.
    """
    centres = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    y, x = ((centres * size).long() for size in masks.shape[1:])
    return _losses(logits.float().flatten(1), masks[:, y[:, None], x].flatten(1))


def _losses(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and Dice loss, (N,) each, of logits (N, P) float32 against truth (N, P) bool."""
    truth = inside.float()
    bce = F.binary_cross_entropy_with_logits(values, truth, reduction="none").mean(1)
    probabilities = values.sigmoid()
    overlap = (probabilities * truth).sum(1)
    dice = 1 - (2 * overlap + 1) / (probabilities.sum(1) + truth.sum(1) + 1)
    return bce, dice
