"""Metrics of predicted masks, counted on a regular grid of points."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.losses import logits_at, regular_points, truth_at


@torch.no_grad()
def mask_metrics(logits: Tensor, masks: Tensor, side: int = 256) -> dict[str, Tensor]:
    """`iou`, `dice`, `precision`, `recall`, and the areas `overlap` and `union` in points, (M,) float32 each.

    If both masks are empty, the first four are 1; if only one is, they are 0.

    Args:
        logits: (M, h, w); the predicted mask is where their bilinear value is above 0.
        masks: (M, H, W) bool, the truth.
        side: points per side of the grid; H counts every pixel of the masks.
    """
    points = regular_points(1, side, logits.device)
    counts = []
    for one, mask in zip(logits, masks, strict=True):  # one by one: at 1024 points per side they are large
        predicted = logits_at(one[None].float(), points)[0] > 0
        truth = truth_at(mask[None], points)[0]
        counts.append(torch.stack([(predicted & truth).sum(), predicted.sum(), truth.sum()]))
    overlap, predicted_area, true_area = torch.stack(counts).float().unbind(1) if counts else logits.new_zeros(3, 0)
    union = predicted_area + true_area - overlap

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(union == 0, 1.0, part / whole.clamp_min(1))

    return {
        "iou": share(overlap, union),
        "dice": share(2 * overlap, predicted_area + true_area),
        "precision": share(overlap, predicted_area),
        "recall": share(overlap, true_area),
        "overlap": overlap,
        "union": union,
    }
