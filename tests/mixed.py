"""A source of samples with objects, with pictures alone and with text alone, and what must be stored of each."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.make_sav import photograph
from pipeline.finder import below
from pipeline.pictures import read_picture
from pipeline.raw import RawFrame, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources import Source

SOURCE = "tests.mixed:Mixed"
FILE = "records.json"
SIZE = (60, 80)
BOX = (10, 20, 50, 60)


def turn(question: str, answer: str, **more: int) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


NO_TARGET = [{"id": "0", "text": "the zebra", "objects": []}]
CAPTION = [{"text": "A cat.", "phrases": []}]
RECORDS: list[dict[str, Any]] = [
    {"pictures": ["a"], "box": BOX, "texts": ["the cat"], "turns": [turn("What is this?", "A cat.", picture=0)]},
    {"pictures": ["b"], "expressions": NO_TARGET},
    {"turns": [turn("Name a prime.", "7"), turn("Another?", "...")]},
    {"pictures": ["a", "b", "c"], "segmentable": False, "turns": [turn("Was läuft hier?", "Nichts.", picture=15)]},
    {"pictures": ["c", "a"], "box": BOX, "texts": ["the rocket", "?!"]},
    {"pictures": ["b", "c"], "captions": CAPTION},
    {"turns": [turn("素数?", "2")]},
    {"pictures": ["c"], "segmentable": False, "turns": [turn("", "A rocket.", picture=0)]},
]
FRAMES = (1, 1, 0, 3, 2, 2, 0, 1)
LETTERS = (7 + 13 + 6, 9, 13 + 1 + 8, 15 + 7, 10, 6, 3 + 1, 9)
"""Characters of the texts with a letter or a digit, counted by hand."""
FIELDS = (
    ["pixel_values", "g_pixel_values", "prompt_masks", "masks"],
    ["pixel_values", "g_pixel_values"],
    [],
    ["pixel_values1", "pixel_values2", "pixel_values3"],
    [f"{name}{k}" for k in (1, 2) for name in ("pixel_values", "g_pixel_values", "prompt_masks", "masks")],
    ["pixel_values1", "g_pixel_values1", "pixel_values2", "g_pixel_values2"],
    [],
    ["pixel_values"],
)
"""Fields of each record's sample, in the order of the tar."""


class Mixed(Source):
    name = "mixed"

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        for number, record in enumerate(json.loads((root / FILE).read_bytes())):
            path = f"{FILE}#{number}"
            records.add(path, len(json.dumps(record)))
            records.attach(path, record)
        return {}

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [FILE, *(f"{name}.png" for part in parts for name in part.get("pictures", ()))]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        (record,) = parts
        frames = []
        for name in record.get("pictures", ()):
            picture = read_picture(below(root, f"{name}.png"))
            frames.append(RawFrame(name, picture, [box_mask(record["box"])] if "box" in record else ()))
        objects = (RawObject("0", tuple(record["texts"])),) if "box" in record else ()
        more = {name: record[name] for name in ("turns", "expressions", "captions") if name in record}
        return RawSample(path, self.name, tuple(frames), objects, more, segmentable=record.get("segmentable", True))


def box_mask(box: Sequence[int]) -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return mask


def write_raw(root: Path, records: Sequence[Mapping[str, Any]] = RECORDS) -> Path:
    """Write the records and three photographs below `root`; return it."""
    root.mkdir(parents=True, exist_ok=True)
    for name, subject in (("a", "chelsea"), ("b", "astronaut"), ("c", "rocket")):
        photograph(subject).resize(SIZE[::-1]).save(root / f"{name}.png")
    (root / FILE).write_text(json.dumps(records))
    return root


def expected_field(root: Path, number: int, field: str) -> np.ndarray:
    """Return what the reader must give for a field of record `number`, with Pillow and numpy alone."""
    name = field.rstrip("0123456789")
    record = RECORDS[number]
    if name == "masks":
        return np.asarray(Image.fromarray(box_mask(record["box"])).resize((1024, 1024), Image.Resampling.NEAREST))[None]
    if name == "prompt_masks":
        return np.asarray(Image.fromarray(box_mask(record["box"])).resize((16, 16), Image.Resampling.NEAREST))[None]
    side = 1024 if name == "g_pixel_values" else 448
    planes = expected_picture(root, record["pictures"][int(field[len(name) :] or 1) - 1], side)
    if name == "g_pixel_values":
        return planes
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    scaled: np.ndarray = (planes / np.float32(255) - mean[:, None, None]) / std[:, None, None]
    return scaled


def expected_picture(root: Path, name: str, side: int) -> np.ndarray:
    """Return a picture of `write_raw` as (3, side, side)."""
    picture = Image.open(root / f"{name}.png").convert("RGB")
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


class Killed(Mixed):
    """The same source, in a process that is killed when it reads the record whose number `kill-at` holds."""

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        mark = root / "kill-at"
        if mark.exists() and path == f"{FILE}#{mark.read_text()}":
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(root, path, options, parts)
