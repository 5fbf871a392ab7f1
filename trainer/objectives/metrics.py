"""Metrics of predicted masks, counted on a regular grid of points."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.losses import logits_at, regular_points, truth_at


@torch.no_grad()
def mask_metrics(logits: Tensor, masks: Tensor, side: int = 256) -> dict[str, Tensor]:
    """`iou`, `dice`, `precision`, `recall`, and the areas `overlap` and `union` in points, a mask: (M,) float32 each.

    Both masks empty: all four are 1. Only one empty: all four are 0.

    Args:
        logits: (M, h, w); a point is predicted where their bilinear value is above 0.
        masks: (M, H, W) bool.
        side: points a side; that of the masks counts every pixel of theirs.
    """
    points = regular_points(1, side, logits.device)
    counts = []
    for one, truth in zip(logits, masks, strict=True):  # one by one: at 1024 points a side they are large
        predicted, wanted = logits_at(one[None].float(), points)[0] > 0, truth_at(truth[None], points)[0]
        counts.append(torch.stack([(predicted & wanted).sum(), predicted.sum(), wanted.sum()]))
    overlap, found, wanted = torch.stack(counts).float().unbind(1) if counts else logits.new_zeros(3, 0)
    union = found + wanted - overlap

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(union == 0, 1.0, part / whole.clamp_min(1))

    return {
        "iou": share(overlap, union),
        "dice": share(2 * overlap, found + wanted),
        "precision": share(overlap, found),
        "recall": share(overlap, wanted),
        "overlap": overlap,
        "union": union,
    }
