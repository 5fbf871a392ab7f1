"""What a judged batch comes to, and the comparisons that the objectives' judging is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainer.data.batch import PairBatch
from trainer.objectives.losses import point_losses, regular_points
from trainer.objectives.metrics import mask_metrics
from trainer.objectives.passes import Passes, cross_entropy_by_row, full_precision, required_texts

POINTS_PER_SIDE = 256
"""Points per side at which losses of masks are taken: as many as the decoder's logits have."""


@dataclass(frozen=True)
class Judged:
    """What a model made of a batch: of M objects, or of R conversations with N masks and S `[SEG]`s."""

    values: dict[str, Tensor]
    """1-d float32 each; NaN is not counted. Of objects, (M,): `bce`, `dice_loss` and those of `mask_metrics` where
    masks are predicted; `caption`, the cross-entropy, where texts are trained on; dual: `swap_gap`, the IoU with the
    object's own caption minus that with another object's (see `other_objects`). Of conversations, (N,), (S,) or (R,):
    see `conversation_judging.judge_conversations`."""
    captions: list[str]
    """M captions: generated (dual), or the first text of each object; R generated answers to first questions."""
    logits: Tensor | None
    """(M, 256, 256) or (N, 256, 256) float32, where masks are predicted."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Of conversations: for each value the row that each of its numbers belongs to, int64 of the value's shape."""


def first_texts(batch: PairBatch) -> list[str]:
    """The first text of each object; raises `UserError` for an object without one."""
    return [texts[0] for texts in required_texts(batch)]


def compare_masks(logits: Tensor, masks: Tensor, side: int) -> dict[str, Tensor]:
    """`bce`, `dice_loss` and the metrics of `mask_metrics`, (M,) float32 each.

    Args:
        logits: (M, 256, 256).
        masks: (M, 1024, 1024) bool.
        side: points per side at which the metrics are counted; the losses are taken at `POINTS_PER_SIDE`.
    """
    with full_precision(logits):
        bce, dice = point_losses(logits, masks, regular_points(len(masks), POINTS_PER_SIDE, logits.device))
        return {"bce": bce, "dice_loss": dice, **mask_metrics(logits, masks, side)}


def caption_losses(
    passes: Passes, batch: PairBatch, visual_tokens: Tensor, captions: Sequence[str], regions: Tensor
) -> dict[str, Tensor]:
    """`caption`, (M,) float32: the cross-entropy of each caption, given its region (M, 16, 16) bool."""
    answers = [passes.caption_tokens(caption) for caption in captions]
    logits, targets, row_of = passes.caption_logits(batch, visual_tokens, regions, answers, answers)
    return {"caption": cross_entropy_by_row(logits, targets, row_of, len(answers))}


def other_objects(image_of_object: Sequence[int]) -> list[int]:
    """For each object another one: the next of its own image, cyclically; the next in the batch where it is alone."""
    chosen = []
    for i, image in enumerate(image_of_object):
        group = [k for k, other in enumerate(image_of_object) if other == image]
        chosen.append(group[(group.index(i) + 1) % len(group)] if len(group) > 1 else (i + 1) % len(image_of_object))
    return chosen
