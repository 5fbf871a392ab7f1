"""Predictions of an evaluation or of a benchmark beside the truth of the sets, sorted by IoU.

A line of the file is read again when it is shown: memory holds a few numbers for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from browsing import drawing
from browsing.collection import Collection, Picture
from browsing.views import ranges
from evaluation.published.predictions import Prediction, parse_line
from shards.errors import UserError
from shards.format import MAX_OBJECTS
from shards.printable import os_error_text
from shards.reader import ShardSet
from shards.regular_file import open_regular

_MOST_LINE = 64 << 20  # bytes
_MOST_PIXELS = 1 << 26
_MOST_MASKS = 99  # of a line, that are drawn
_NOWHERE = -1


@dataclass(frozen=True)
class _Lines:
    """Where the lines of a file are, and what they are sorted by; (N,) each."""

    offsets: NDArray[np.int64]
    ious: NDArray[np.float32]
    """NaN where a line has none."""
    sets: NDArray[np.int32]
    """Number of the set of the sample; -1 where the line names none of the sets."""
    positions: NDArray[np.int64]


class PredictedFile:
    """A file of predictions, a line of JSON for each: `predictions.jsonl` of a benchmark, or what `evaluate` wrote.

    Args:
        path: of the file.
        collection: the sets whose samples the lines may name.

    Raises:
        UserError: there is no such file.
    """

    def __init__(self, path: Path, collection: Collection) -> None:
        self.path = path
        self._collection = collection
        self._names = [*collection.sets]
        try:
            open_regular(path).close()
        except OSError as error:
            raise UserError("no predictions", where="--predictions", met=os_error_text(error)) from None

    @cached_property
    def _lines(self) -> _Lines:
        """Read the file once. A torn last line is left out. Raises `UserError` on a line that is no prediction."""
        offsets: list[int] = []
        ious: list[float] = []
        named: list[tuple[str, str]] = []
        with open_regular(self.path) as file:
            begin = 0
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE + 1), b""), 1):
                if line.strip() and line.endswith(b"\n"):
                    prediction = parse_line(line, f"{self.path}, line {number}")
                    offsets.append(begin)
                    ious.append(float(prediction.numbers.get("iou", np.nan)))
                    about = prediction.sample
                    named.append((str(about.get("set", "")), str(about.get("key", ""))))
                begin += len(line)
        sets = np.full(len(offsets), _NOWHERE, np.int32)
        positions = np.full(len(offsets), _NOWHERE, np.int64)
        for n, name in enumerate(self._names):
            own = np.array([place for place, (of_set, _) in enumerate(named) if of_set == name], np.int64)
            found = positions_of(self._collection.sets[name].shards, [named[place][1] for place in own])
            own, found = own[found >= 0], found[found >= 0]
            sets[own], positions[own] = n, found
        return _Lines(np.array(offsets, np.int64), np.array(ious, np.float32), sets, positions)

    def rows(self, sort: str, begin: int, count: int) -> dict[str, Any]:
        """Return some predictions: what was asked and answered, the numbers, and the sample where one is named.

        Args:
            sort: "iou" for the least first, "-iou" for the greatest first, else as in the file. Lines without an IoU
                come last.
        """
        lines = self._lines
        order = np.arange(len(lines.offsets))
        if sort in ("iou", "-iou"):
            values = -lines.ious if sort == "-iou" else lines.ious
            order = np.argsort(values, kind="stable")  # NaN comes last
        shown = [self._row(int(n)) for n in order[begin : begin + count]]
        linked = int((lines.sets >= 0).sum())
        return {"total": len(order), "linked": linked, "begin": begin, "predictions": shown}

    def _row(self, number: int) -> dict[str, Any]:
        prediction = self._read(number)
        about: dict[str, Any] = {
            "number": number,
            "item": prediction.item,
            "question": prediction.question,
            "answer": prediction.answer,
            "masks": len(prediction.masks),
            "numbers": dict(prediction.numbers),
        }
        lines = self._lines
        if lines.sets[number] >= 0:
            frame = prediction.sample.get("frame", 1)
            name = self._names[int(lines.sets[number])]
            about["set"] = name
            about["version"] = self._collection.sets[name].version
            about["position"] = int(lines.positions[number])
            about["frame"] = frame if type(frame) is int and frame > 0 else 1
            about["objects"] = ranges(_objects_of(prediction.sample))
        return about

    def mask(self, number: int) -> Picture:
        """Return the masks of a prediction as a layer, at their own size."""
        if not 0 <= number < len(self._lines.offsets):
            raise UserError("no such prediction", met=str(number)[:40])
        masks = self._read(number).masks[:_MOST_MASKS]
        sizes = {(int(mask["size"][0]), int(mask["size"][1])) for mask in masks} or {(1, 1)}
        (height, width), *others = sizes
        if others or height * width > _MOST_PIXELS:
            raise UserError("masks of several sizes, or too large", where=str(self.path), met=str(sorted(sizes))[:80])
        prediction = Prediction("-", "", "", tuple(masks))
        decoded = prediction.decoded(height, width)
        first = next(iter(_objects_of(self._read(number).sample)), 0)  # in the colour of the truth
        return Picture(drawing.masks_layer(enumerate(decoded, first), height, width), "image/png")

    def _read(self, number: int) -> Prediction:
        """Read a line again; raises `UserError` where the file was changed meanwhile."""
        with open_regular(self.path) as file:
            file.seek(int(self._lines.offsets[number]))
            return parse_line(file.readline(_MOST_LINE + 1), f"{self.path}, prediction {number + 1}")


def positions_of(shards: ShardSet, keys: Iterable[str]) -> NDArray[np.int64]:
    """Return the position of each key in a set, (n,); -1 where there is none."""
    wanted = np.array([key.encode("ascii", "replace")[:64] for key in keys], "S64")
    if not len(wanted):
        return np.empty(0, np.int64)
    known = np.asarray(shards.index["key"])
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    found = order[places].astype(np.int64)
    return np.where(known[found] == wanted, found, _NOWHERE)


def _objects_of(sample: Mapping[str, Any]) -> list[int]:
    objects = sample.get("objects")
    named = objects if isinstance(objects, list) else []
    return sorted({n for n in named if type(n) is int and 0 <= n < MAX_OBJECTS})
