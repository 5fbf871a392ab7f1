"""Held-out samples as people are shown them: pictures, texts, true and predicted masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.conversations.conversation import Conversation, Mark, Text
from trainer.conversations.wording import normalise_phrase
from trainer.data.batch import Batch, ConversationBatch, Frame, PairBatch, required
from trainer.data.unpack import unpacked
from trainer.measure.drawing import Mask, Picture, marked
from trainer.objectives import load_objective
from trainer.objectives.judging import Judged
from trainer.objectives.losses import logits_at, regular_points, truth_at

_SIDE = 256
_MOST_FRAMES = 8
"""Frames of a video that are shown."""
_OF_OBJECTS = ("iou", "swap_gap", "caption")
_OF_ROWS = ("iou", "video_iou", "empty_right", "lang", "caption")


@dataclass(frozen=True)
class Panel:
    """A held-out object."""

    name: str
    prompt: Picture | None
    """(h, w, 3): the frame that was described, with its region; None where there was no region."""
    image: Picture
    """(h, w, 3): the frame to segment."""
    truth: Mask
    """(h, w)."""
    prediction: Mask | None
    """(h, w); None where no mask was predicted."""
    caption: str
    values: dict[str, float]
    """Metrics by their names; NaN is not shown."""

    def said(self) -> list[str]:
        """Lines of text: the name and the caption."""
        return [f"{self.name}: {self.caption}"]


@dataclass(frozen=True)
class Span:
    """A part of a question or an answer."""

    text: str
    number: int | None = None
    """Number of the mask or region, from 0, whose colour it has; None for other letters."""


@dataclass(frozen=True)
class ConversationPanel:
    """A held-out conversation with F frames, of which masks of T targets are predicted."""

    name: str
    kind: str
    turns: list[tuple[list[Span], list[Span]]]
    """Question and true answer of each turn."""
    generated: str
    """What the model answered to the first question; nothing where it was not asked."""
    frames: list[Picture]
    """F pictures (h, w, 3)."""
    regions: list[Mask]
    """(h, w) each: the regions of the last frame."""
    truth: list[list[Mask]]
    """F lists of T masks (h, w); empty without targets."""
    prediction: list[list[Mask]]
    """Like `truth`."""
    values: dict[str, float]
    """Metrics by their names; NaN is not shown."""

    def said(self) -> list[str]:
        """Lines of text: the name, and what was said."""
        return [self.name, *(f"{role}: {''.join(span.text for span in spans)}" for role, spans in self.lines())]

    def lines(self) -> list[tuple[str, list[Span]]]:
        """Questions and true answers in order, each with its role; below the first ones what the model answered."""
        said = [pair for turn in self.turns for pair in zip(("question", "answer"), turn, strict=True)]
        if self.generated:
            said.insert(2, ("model", [Span(self.generated)]))
        return said

    def strips(self) -> list[tuple[str, list[Picture]]]:
        """Rows of F pictures, each with its name: the frames with their regions; with true, with predicted masks."""
        frames = [*self.frames]
        if not frames:
            return []
        if self.regions:
            frames[-1] = marked(frames[-1], self.regions, numbered=True)
        found = [("regions" if self.regions else "picture" if len(frames) == 1 else "frames", frames)]
        for name, masks in (("true masks", self.truth), ("predicted masks", self.prediction)):
            if masks:
                of_frames = zip(self.frames, masks, strict=True)
                found.append((name, [marked(frame, several, numbered=True) for frame, several in of_frames]))
        return found


AnyPanel = Panel | ConversationPanel


def panels(batch: Batch, judged: Judged, objective: str) -> Iterator[AnyPanel]:
    """Yield a panel for each object, or for each conversation, of a judged batch, which is on the CPU."""
    if isinstance(batch, ConversationBatch):
        return (_of_row(batch, judged, row) for row in range(len(batch.rows)))
    assert isinstance(batch, PairBatch)
    return _of_objects(batch, judged, objective)


def _of_objects(batch: PairBatch, judged: Judged, objective: str) -> Iterator[Panel]:
    shown = load_objective(objective)
    first = batch.frames[0]
    target = batch.frames[(shown.target_frame or 1) - 1]

    def mask_of(frame: Frame, number: int) -> Mask:
        return _truth(required(frame.masks), number)

    for i, sample in enumerate(batch.image_of_object.tolist()):
        prompt = None
        if shown.shows_region:
            prompt = marked(_thumbnail(required(first.g_pixel_values)[sample]), [mask_of(first, i)])
        yield Panel(
            name=batch.keys[sample],
            prompt=prompt,
            image=_thumbnail(required(target.g_pixel_values)[sample]),
            truth=mask_of(target, i),
            prediction=None if judged.logits is None else _predicted(judged.logits, i),
            caption=judged.captions[i],
            values={name: float(judged.values[name][i]) for name in _OF_OBJECTS if name in judged.values},
        )


def _of_row(batch: ConversationBatch, judged: Judged, row: int) -> ConversationPanel:
    talk = batch.conversations[row]
    images = [image for image in batch.image_of_row[row].tolist() if image >= 0]
    numbers = (judged.rows["bce"] == row).nonzero()[:, 0].tolist()  # by frame, then by [SEG]
    targets = len(numbers) // max(1, len(images))
    truth = [_truth(required(batch.masks), number) for number in numbers]
    assert judged.logits is not None
    prediction = [_predicted(judged.logits, number) for number in numbers]

    def by_frame(masks: list[Mask]) -> list[list[Mask]]:
        return [masks[n : n + targets] for n in range(0, len(masks), max(1, targets))][:_MOST_FRAMES]

    values = {name: judged.values[name][judged.rows[name] == row] for name in _OF_ROWS}
    regions = batch.regions[row].numpy()
    return ConversationPanel(
        name=batch.keys[batch.sample_of_row[row]],
        kind=talk.kind,
        turns=turns_of(talk),
        generated=judged.captions[row],
        frames=[_picture(batch, image) for image in images[:_MOST_FRAMES]],
        regions=[_enlarged(cells) for cells in regions if cells.any()],
        truth=by_frame(truth),
        prediction=by_frame(prediction),
        values={name: float(value.nanmean()) for name, value in values.items()},
    )


def turns_of(talk: Conversation) -> list[tuple[list[Span], list[Span]]]:
    """Return questions and answers as spans: `[SEG]`s and the phrases that they belong to have numbers of masks."""
    seg = 0
    region = 0
    turns = []
    for turn in talk.turns:
        segs = turn.answer.count(Mark.SEG)
        phrases = {}
        if Mark.PHRASE_START not in turn.answer:  # else the answer names them
            targets = enumerate(talk.targets[seg : seg + segs], seg)
            phrases = {normalise_phrase(target.phrase): number for number, target in targets}
        question = _spans(turn.question, seg, region, phrases)
        region += turn.question.count(Mark.REGION)
        turns.append((question, _spans(turn.answer, seg, region, {})))
        seg += segs
        region += turn.answer.count(Mark.REGION)
    return turns


def _spans(text: Text, seg: int, region: int, phrases: dict[str, int]) -> list[Span]:
    """Return a text as spans.

    Args:
        seg: number of its first `[SEG]`.
        region: number of its first region.
        phrases: the masks that letters ask for.
    """
    spans: list[Span] = []
    in_phrase = False
    for piece in text:
        if piece is Mark.SEG:
            spans.append(Span(f"{piece.value} {seg + 1}", seg))
            seg += 1
        elif piece is Mark.REGION:
            spans.append(Span(f"[{region + 1}]", region))
            region += 1
        elif isinstance(piece, Mark):
            in_phrase = piece is Mark.PHRASE_START
        elif in_phrase:
            spans.append(Span(piece, seg))
        else:
            spans += _coloured(piece.replace("\n", " "), phrases)
    if spans and spans[0].number is None:
        spans[0] = Span(spans[0].text.lstrip(), None)
    return [span for span in spans if span.text]


def _coloured(letters: str, phrases: dict[str, int]) -> Iterator[Span]:
    """Yield letters, and the phrases in them, which are normalised, with their numbers."""
    for phrase, number in phrases.items():
        at = letters.lower().find(phrase) if phrase else -1
        if at >= 0:
            yield from _coloured(letters[:at], {})
            yield Span(letters[at : at + len(phrase)], number)
            yield from _coloured(letters[at + len(phrase) :], {})
            return
    yield Span(letters)


def _truth(masks: Tensor, number: int) -> Mask:
    points = regular_points(1, _SIDE, torch.device("cpu"))
    return _square(truth_at(unpacked(masks[number : number + 1]), points))


def _predicted(logits: Tensor, number: int) -> Mask:
    points = regular_points(1, _SIDE, torch.device("cpu"))
    return _square(logits_at(logits[number : number + 1].cpu(), points) > 0)


def _picture(batch: ConversationBatch, image: int) -> Picture:
    """Return a picture of `pixel_values`, as it was before it was normalised."""
    pixels = required(batch.pixel_values)[image]
    if pixels.dtype != torch.uint8:
        mean, std = torch.tensor([batch.recipe.mean, batch.recipe.std]).view(2, 3, 1, 1)
        pixels = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return _thumbnail(pixels)


def _thumbnail(image: Tensor) -> Picture:
    """Every so-many-th pixel of (3, S, S): (256, 256, 3) uint8. For people to see; the model never reads it."""
    chosen = ((torch.arange(_SIDE) + 0.5) * image.shape[-1] / _SIDE).long()
    return np.ascontiguousarray(image[:, chosen][:, :, chosen].permute(1, 2, 0).numpy())


def _enlarged(cells: Mask) -> Mask:
    """Return cells (16, 16) as a mask (256, 256)."""
    return np.kron(cells, np.ones((_SIDE // len(cells), _SIDE // len(cells)), np.bool_))


def _square(values: Tensor) -> Any:
    return values.view(_SIDE, _SIDE).numpy()
