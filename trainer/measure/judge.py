"""What a model makes of a batch, as a user would use it, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.measure.metrics import mask_metrics
from trainer.model.captioner import Captioner, captions_of
from trainer.objectives.losses import point_losses, regular_points
from trainer.objectives.passes import Batch, Passes, by_row, full_precision, texts_of
from trainer.objectives.reverse_loop import cells_of_logits

JUDGED = {
    "dual": ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2"),
    "segment": ("pixel_values1", "g_pixel_values1", "masks1"),
    "describe": ("pixel_values1", "prompt_masks1"),
    "reverse": ("pixel_values1", "g_pixel_values1", "masks1"),
}
"""What judging an objective reads of a batch."""
TARGET_FRAME = {"dual": 2, "segment": 1, "reverse": 1}
"""The frame whose masks are predicted."""
_GRID = 256  # points a side: as many as the decoder's logits have


@dataclass(frozen=True)
class Judged:
    """Of M objects."""

    values: dict[str, Tensor]
    """(M,) float32 each; NaN where there is none. With masks: `bce`, `dice_loss` and those of `mask_metrics`. With
    texts that are told: `caption`, the cross-entropy. dual: `swap_gap`, the IoU with the object's own caption less that
    with another object's: of the same sample if it has one, else of another sample in the batch."""
    captions: list[str]
    """Generated (dual), or the texts."""
    logits: Tensor | None
    """(M, 256, 256), where masks are predicted."""


@torch.no_grad()
def judge(passes: Passes, batch: Batch, objective: str, side: int = _GRID) -> Judged:
    """Judge the model, which is in evaluation mode, on a batch that is on its device.

    dual: it describes frame 1's regions itself, greedily, and segments frame 2 from these words (the cycle). segment
    and reverse: it segments frame 1 from the first text. describe and reverse: it is told the first text, of the region
    or of the mask that it predicted.

    Args:
        batch: with the fields `JUDGED[objective]`.
        side: points a side at which masks are compared.
    """
    model, prompts = passes.model, passes.model.prompts
    visual_tokens = model.encode_image(batch["pixel_values1"])
    if objective == "describe":
        captions = [texts[0] for texts in texts_of(batch)]
        return Judged(_told(passes, batch, visual_tokens, captions, batch["prompt_masks1"]), captions, None)
    frame = TARGET_FRAME[objective]
    sam_features = model.encode_sam(batch[f"g_pixel_values{frame}"])
    masks = batch[f"masks{frame}"]
    if objective != "dual":
        captions = [texts[0] for texts in texts_of(batch)]
        logits, _ = passes.segment(batch, passes.question(batch, captions, None), visual_tokens, sam_features)
        values = _compared(logits, masks, side)
        if objective == "reverse":
            values |= _told(passes, batch, visual_tokens, captions, cells_of_logits(logits)[0])
        return Judged(values, captions, logits)
    question = passes.description_question(batch, visual_tokens)
    length = passes.config.max_caption_tokens
    answers = Captioner(model)(*question, length, any_process=passes.any_process)
    words = [caption.words for caption in captions_of(answers, prompts)]
    target = passes.encode_second_image(batch, visual_tokens)
    logits, _ = passes.segment(batch, passes.question(batch, words, None), target, sam_features)
    values = _compared(logits, masks, side)
    values["swap_gap"] = torch.full_like(values["iou"], torch.nan)
    if passes.any_process(len(words) > 1):
        swapped = [words[i] for i in others(batch["image_of_object"].tolist())]
        wrong, _ = passes.segment(batch, passes.question(batch, swapped, None), target, sam_features)
        if len(words) > 1:
            values["swap_gap"] = values["iou"] - mask_metrics(wrong, masks, side)["iou"]
    return Judged(values, [prompts.readable(said) for said in words], logits)


def others(image_of_object: list[int]) -> list[int]:
    """For each object another one: the next of its own image, round; the next in the batch where it is alone."""
    chosen = []
    for i, image in enumerate(image_of_object):
        own = [k for k, other in enumerate(image_of_object) if other == image]
        chosen.append(own[(own.index(i) + 1) % len(own)] if len(own) > 1 else (i + 1) % len(image_of_object))
    return chosen


def _compared(logits: Tensor, masks: Tensor, side: int) -> dict[str, Tensor]:
    with full_precision(logits):
        bce, dice = point_losses(logits, masks, regular_points(len(masks), _GRID, logits.device))
        return {"bce": bce, "dice_loss": dice, **mask_metrics(logits, masks, side)}


def _told(
    passes: Passes, batch: Batch, visual_tokens: Tensor, captions: list[str], regions: Tensor
) -> dict[str, Tensor]:
    answers = [passes.tokens_of(caption) for caption in captions]
    logits, targets, row_of = passes.describe(batch, visual_tokens, regions, answers, answers)
    return {"caption": by_row(logits, targets, row_of, len(answers))}
