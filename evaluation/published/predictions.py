"""Predictions of a benchmark: one line of JSON per answered item. docs/BENCHMARKS.md has the format.

An item counts once: the first line stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from evaluation.appended import AppendedFile
from pipeline.cropped import Bool
from pipeline.masks import from_coco
from shards.errors import BadInput, UserError
from shards.strict_json import parse_json

FILE = "predictions.jsonl"
RUN = "run.json"
"""Beside predictions: what decided them, where this project's model made them."""
_PICTURE = "<image>"
_MOST_BYTES = 64 << 20  # of a line
_LONGEST_ID = 1000  # characters
_WANTED = '{"item": TEXT, "question": TEXT, "answer": TEXT, "masks": [{"size": [H, W], "counts": TEXT}, ...]}'


@dataclass(frozen=True)
class Prediction:
    """The answer to one item."""

    item: str
    """Id of the item in its benchmark."""
    question: str
    """As it was asked, without the picture's mark."""
    answer: str
    masks: tuple[Mapping[str, Any], ...]
    """COCO's compressed run lengths at the picture's own size, one for each `[SEG]`; of a video, one for each frame."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    """`set`, `key`, `objects` and `frame` of the sample that was asked about, in an evaluation on shards."""

    def decoded(self, height: int, width: int) -> Bool:
        """Return the masks: (n, height, width).

        Raises:
            BadInput: broken run lengths, or a mask of another size.
        """
        masks = [from_coco(dict(mask), height, width) for mask in self.masks]
        return np.stack(masks) if masks else np.zeros((0, height, width), np.bool_)

    def to_line(self) -> bytes:
        """Return the line of the file, with its line end."""
        values = {"item": self.item, "question": self.question, "answer": self.answer, "masks": [*self.masks]}
        more: dict[str, Any] = {"numbers": dict(self.numbers)} if self.numbers else {}
        more |= {"sample": dict(self.sample)} if self.sample else {}
        return json.dumps(values | more, allow_nan=False).encode("ascii") + b"\n"  # an answer may hold anything


def question_of(text: str) -> str:
    """Return a question without the picture's mark, as predictions hold it."""
    return text.replace(_PICTURE, "", 1).strip()


def one_picture(text: str) -> str:
    """Return a question for the model, with the picture in place of the first `<image>`; others are letters."""
    from trainer.model.tokenizer import as_letters

    before, mark, after = text.partition(_PICTURE)
    return before + mark + as_letters(after, _PICTURE)


def encode(mask: Bool) -> dict[str, Any]:
    """Return a mask (H, W) as COCO's compressed run lengths, as JSON holds them."""
    encoded = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def parse_line(line: bytes, where: str) -> Prediction:
    """Return the prediction of a line.

    Raises:
        UserError: it is no JSON that all parsers read alike, or breaks the format; it names the line.
    """
    if len(line) > _MOST_BYTES:
        raise UserError(
            "a line that is too long", where=where, met=f"{len(line):,} bytes", wanted=f"<= {_MOST_BYTES:,}"
        )
    try:
        values = parse_json(line)
        fault = _fault(values)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise UserError("not a prediction", where=where, met=fault, wanted=_WANTED)
    texts = (values["item"], values["question"], values["answer"])
    sample = values.get("sample")
    about = sample if isinstance(sample, dict) else {}
    return Prediction(*texts, tuple(values["masks"]), values.get("numbers", {}), about)


def _fault(values: Any) -> str:
    """Return what breaks the format; "" for nothing."""
    if not isinstance(values, dict):
        return f"{str(values)[:40]}, which is no object"
    for key in ("item", "question", "answer"):
        if not isinstance(values.get(key), str):
            return f"{key} {values.get(key)!r:.40}" if key in values else f"no {key}"
    if not 0 < len(values["item"]) <= _LONGEST_ID:
        return f"an item's id of {len(values['item'])} characters"
    masks = values.get("masks")
    if not isinstance(masks, list):
        return f"masks {masks!r:.40}" if "masks" in values else "no masks"
    for number, mask in enumerate(masks, 1):
        inner = mask if isinstance(mask, dict) else {}
        size = inner.get("size")
        is_size = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        if not is_size or not isinstance(inner.get("counts"), str):
            return f"mask {number}: {mask!r:.60}"
    numbers = values.get("numbers", {})
    finite = isinstance(numbers, dict) and all(type(n) in (int, float) and math.isfinite(n) for n in numbers.values())
    return "" if finite else f"numbers {numbers!r:.60}"


@dataclass(frozen=True)
class Predictions:
    """All predictions of a file."""

    of_item: Mapping[str, Prediction]
    repeated: int
    """Lines of items that an earlier line has answered; they are not counted."""


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions. A torn last line, as a killed process leaves it, is left out.

    Raises:
        UserError: there is no such file, or a line of it breaks the format.
    """
    if not path.is_file():
        raise UserError("no predictions", where=str(path), wanted=f"a {FILE}")
    found: dict[str, Prediction] = {}
    lines = 0
    with open(path, "rb") as file:
        for prediction in _parsed(iter(lambda: file.readline(_MOST_BYTES + 1), b""), str(path)):
            found.setdefault(prediction.item, prediction)
            lines += 1
    return Predictions(found, lines - len(found))


def _parsed(lines: Iterable[bytes], path: str) -> Iterator[Prediction]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield parse_line(line, f"{path}, line {number}")
        except UserError:
            if not line.endswith(b"\n") and len(line) <= _MOST_BYTES:  # torn
                return
            raise


class PredictionFile(AppendedFile[Prediction]):
    """A file of predictions that any number of processes append to."""

    def __init__(self, path: Path) -> None:
        """Open the file; it is made where there is none. A torn last line is cut off by the first append."""
        self.answered: set[str] = set()
        """Ids of the items that the file was known to hold at the last `refresh`."""
        super().__init__(path)

    def parse(self, line: bytes, where: str) -> Prediction:
        return parse_line(line, where)

    def to_bytes(self, line: Prediction) -> bytes:
        return line.to_line()

    def note(self, line: Prediction, begin: int, length: int) -> None:
        self.answered.add(line.item)

    def is_noted(self, line: Prediction) -> bool:
        return line.item in self.answered


def union_of(prediction: Prediction | None, height: int, width: int, where: str) -> Bool:
    """Return the union of all masks of an answer, (height, width); empty without an answer or a mask.

    Raises:
        UserError: a mask is broken, or of another size; it names the item.
    """
    if prediction is None:
        return np.zeros((height, width), np.bool_)
    return np.asarray(masks_of(prediction, height, width, where).any(axis=0))


def masks_of(prediction: Prediction, height: int, width: int, where: str) -> Bool:
    """Return the masks of an answer: (n, height, width).

    Raises:
        UserError: a mask is broken, or of another size; it names the item.
    """
    try:
        return prediction.decoded(height, width)
    except BadInput as error:
        raise _unfit(error, prediction, where) from None


def frame_of(prediction: Prediction, number: int, frames: int, height: int, width: int, where: str) -> Bool:
    """Return the mask of a frame of a video, (height, width); empty where the answer has no masks.

    Args:
        number: of the frame, from 0.
        frames: number of frames of the video.

    Raises:
        UserError: not one mask for each frame, or a mask that is broken or of another size; it names the item.
    """
    if not prediction.masks:
        return np.zeros((height, width), np.bool_)
    if len(prediction.masks) != frames:
        met, wanted = f"{len(prediction.masks)} masks", f"{frames}, one for each frame, or none"
        raise UserError("masks do not fit the frames", where=f"{where}, item {prediction.item}", met=met, wanted=wanted)
    try:
        return from_coco(dict(prediction.masks[number]), height, width)
    except BadInput as error:
        raise _unfit(error, prediction, where) from None


def _unfit(error: BadInput, prediction: Prediction, where: str) -> UserError:
    return UserError(error.what, where=f"{where}, item {prediction.item}", met=error.met, wanted=error.wanted)
