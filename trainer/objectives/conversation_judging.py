"""Judge conversations: masks and language with the true answers as input, and the answers that the model generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.conversations.conversation import Conversation, Mark
from trainer.data.batch import ConversationBatch
from trainer.model.architecture import GRID
from trainer.model.compiled import uncompiled
from trainer.model.generation import Answers, generate, likeliest
from trainer.model.prompts import IMAGE_TOKENS
from trainer.model.rows import IGNORE, TokenRow, cut_row
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, compare_masks
from trainer.objectives.passes import Passes, Predicted, cross_entropy_by_row

ASKS_FOR_MASKS = ("segment", "referring")
"""Kinds whose every question asks for a mask: an answer without `[SEG]` is a refusal."""
SHARES = ("seg_asked", "seg_unasked", "refused_right", "refused_wrong")
_METRICS = ("iou", "dice", "precision", "recall")
_MASKS = (*_METRICS, "overlap", "union", "bce", "dice_loss", "empty_right")


def judge_conversations(passes: Passes, batch: ConversationBatch, side: int = POINTS_PER_SIDE) -> Judged:
    """Judge a model, in evaluation mode, on R conversations with N masks and S `[SEG]`s. Without gradient.

    Values are, by length:

    - (N,), of each mask of each frame: `bce`, `dice_loss`, `overlap` and `union`; where the truth is not empty, `iou`,
      `dice`, `precision` and `recall`; where it is, `empty_right`: 1 if the predicted mask is empty too, else 0.
    - (S,), of each `[SEG]` in a row of several frames: `video_iou`, the overlap in all frames over the union in all
      frames; NaN where the object is in none.
    - (R,): the cross-entropy of the answers, a mean over a row's tokens: `caption` for rows of kind describe, `lang`
      for others. The other values are 1 or 0 and tell of the answer that the model generates, greedily, to the row's
      first question, with at most `eval.answer_tokens` tokens. `seg_asked`: it has a `[SEG]`, where the true answer
      has one; `seg_unasked`: it has one where the question asks for none; `refused_wrong`: it has none, though an
      expression of an object was asked for; `refused_right`: it has none, and the true answer is a refusal.

    A number that a mask, `[SEG]` or row does not have is NaN.

    Args:
        side: points per side at which predicted and true masks are compared.
    """
    device = passes.model.device
    seg = passes.model.prompts.seg
    predicted = passes.predict(_without_copies(batch))
    of_masks = _compare(predicted.masks, batch.masks, side)
    segs = [number for number, row in enumerate(batch.rows) for _ in range(row.ids.count(seg))]
    row_of_seg = torch.tensor(segs, dtype=torch.int64, device=device)
    of_segs = {"video_iou": _video_iou(of_masks, batch, row_of_seg)}
    of_rows = _language(predicted, batch.conversations)
    answers, has_seg = _generate(passes, batch, predicted.visual_tokens)
    of_rows |= _shares(batch.conversations, has_seg, device)
    rows = dict.fromkeys(of_masks, row_of_seg[batch.seg_of_mask])
    rows |= dict.fromkeys(of_segs, row_of_seg)
    rows |= dict.fromkeys(of_rows, torch.arange(len(batch.rows), device=device))
    return Judged({**of_masks, **of_segs, **of_rows}, answers, predicted.masks, rows)


def _without_copies(batch: ConversationBatch) -> ConversationBatch:
    """Let rows that show the same picture share its `g_pixel_values`: SAM 2 encodes it once."""
    if batch.g_pixel_values is None:
        return batch
    rows = zip(batch.conversations, batch.image_of_row.tolist(), strict=True)
    images = [image for talk, of_row in rows if talk.targets for image in of_row if image >= 0]  # of G pictures
    places = {image: place for place, image in reversed([*enumerate(images)])}
    kept = sorted(places.values())
    number_of = torch.tensor([kept.index(places[image]) for image in images], device=batch.picture_of_mask.device)
    pictures = batch.g_pixel_values[kept] if len(kept) < len(images) else batch.g_pixel_values
    return replace(batch, g_pixel_values=pictures, picture_of_mask=number_of[batch.picture_of_mask])


def _language(predicted: Predicted, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
    """`caption` and `lang`, (R,) each."""
    rows = len(conversations)
    losses = cross_entropy_by_row(predicted.logits, predicted.labels, predicted.row_of, rows)
    losses = losses.where(torch.bincount(predicted.row_of, minlength=rows) > 0, torch.nan)
    describes = torch.tensor([talk.kind == "describe" for talk in conversations], dtype=torch.bool)
    describes = describes.to(losses.device)
    return {"caption": losses.where(describes, torch.nan), "lang": losses.where(~describes, torch.nan)}


def _compare(logits: Tensor, masks: Tensor | None, side: int) -> dict[str, Tensor]:
    """Values of N masks, see `judge_conversations`."""
    if masks is None:
        return {name: logits.new_zeros(0) for name in _MASKS}
    values = compare_masks(logits, masks, side)
    empty = ~masks.flatten(1).any(1)
    right = values["iou"].where(empty, torch.nan)
    return values | {name: values[name].where(~empty, torch.nan) for name in _METRICS} | {"empty_right": right}


def _video_iou(of_masks: dict[str, Tensor], batch: ConversationBatch, row_of_seg: Tensor) -> Tensor:
    """(S,): overlap over union of each `[SEG]` in all frames of its row."""
    none = torch.zeros(len(row_of_seg), device=row_of_seg.device)
    seg_of_mask = batch.seg_of_mask.to(none.device)
    overlap, union = (none.index_add(0, seg_of_mask, of_masks[name]) for name in ("overlap", "union"))
    visible = none.index_add(0, seg_of_mask, (~of_masks["iou"].isnan()).float()) > 0
    is_video = torch.tensor([len(talk.frames) > 1 for talk in batch.conversations], dtype=torch.bool).to(none.device)
    return (overlap / union.clamp_min(1)).where(visible & is_video[row_of_seg], torch.nan)


def _shares(
    conversations: Sequence[Conversation], has_seg: Sequence[bool | None], device: torch.device
) -> dict[str, Tensor]:
    """Values of `SHARES`, (R,) each.

    Args:
        has_seg: for each row whether the generated answer has a `[SEG]`; None where there is none.
    """
    found = {name: [torch.nan] * len(conversations) for name in SHARES}
    for row, (talk, has) in enumerate(zip(conversations, has_seg, strict=True)):
        if has is None:
            continue
        if Mark.SEG in talk.turns[0].answer:
            found["seg_asked"][row] = float(has)
            if talk.kind in ASKS_FOR_MASKS and talk.targets[0].objects:
                found["refused_wrong"][row] = float(not has)
        elif talk.kind in ASKS_FOR_MASKS:
            found["refused_right"][row] = float(not has)
        else:
            found["seg_unasked"][row] = float(has)
    return {name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in found.items()}


def _generate(
    passes: Passes, batch: ConversationBatch, visual_tokens: Tensor | None
) -> tuple[list[str], list[bool | None]]:
    """Answer the first question of each row greedily: R answers as text, and whether each has a `[SEG]`.

    A row that was cut before its first answer is not asked: its answer is empty, and nothing is said of its `[SEG]`.
    """
    prompts = passes.model.prompts
    questions = {number: question for number, row in enumerate(batch.rows) if (question := first_question(row))}
    texts = [""] * len(batch.rows)
    has_seg: list[bool | None] = [None] * len(batch.rows)
    if passes.any_process(bool(questions)):
        answers = _answers(passes, batch, visual_tokens, questions).tokens()
        for number, ids in zip(questions, answers, strict=bool(questions)):
            texts[number] = prompts.readable(ids[:-1] if ids[-1] in prompts.end_tokens else ids)
            has_seg[number] = prompts.seg in ids
    return texts, has_seg


def _answers(
    passes: Passes, batch: ConversationBatch, visual_tokens: Tensor | None, questions: Mapping[int, TokenRow]
) -> Answers:
    """Generate the answers to the first questions of rows, by their numbers; to an empty row where there are none."""
    model = passes.model
    rows = model.prompts.padded([*questions.values()] or [passes.empty_row()], model.device, left=True)
    images = batch.image_of_row[[*questions]]
    regions = batch.regions[[*questions]]
    if not questions:
        images = torch.full((1, 1), -1)
        regions = torch.zeros(1, 0, GRID, GRID, dtype=torch.bool)
    places = torch.tensor(rows.contexts_per_row, device=regions.device)
    of_pictures = (images >= 0).sum(1) * IMAGE_TOKENS
    within = of_pictures[:, None] + regions.flatten(2).sum(2).cumsum(1) <= places[:, None]
    regions = regions & within[:, :, None, None]  # a later question may name others
    embeddings = model.embed_rows(rows, visual_tokens, images, regions)
    with uncompiled(model):
        return generate(
            model,
            rows,
            embeddings,
            passes.config.eval.answer_tokens,
            likeliest,
            model.prompts.ended,
            any_process=passes.any_process,
        )


def first_question(row: TokenRow) -> TokenRow | None:
    """Return a row as far as its first answer, which is left out; None where no answer has a label."""
    first = next((n for n, label in enumerate(row.labels) if label != IGNORE), 0)
    return cut_row(row, 0, first) if first else None
