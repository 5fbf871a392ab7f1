"""A user's own data: pictures with masks, described by one JSON Lines file, or lying beside one another.

`docs/datasets/folder.md` is the schema.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.annotations import parse_json
from pipeline.boundary import entries
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.pictures import open_image, read_picture
from pipeline.raw import RawInput, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.sources.objects import Candidate, sample_of
from pipeline.text import open_text
from pipeline.walk import listed, walk
from shards.errors import BadInput, UserError

LINES = "samples.jsonl"
_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# One list or one object over many lines; a list of something else is one broken line.
_ONE_DOCUMENT = re.compile(rb"\s*(\[\s*\{|[\[{]\s*\n.)", re.DOTALL)
_MOST_BYTES = 64 << 20  # of a line


class Folder:
    name = "folder"
    choices: Mapping[str, Any] = {}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        if (root / LINES).exists():
            return _find_lines(root, records)
        if (root / "images").is_dir() and (root / "masks").is_dir():
            return _find_beside(root, records)
        raise UserError("not a folder of this kind", where=str(root), wanted=f"{LINES}, or images/ and masks/")

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        return {}

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        if len(parts) != 1:
            do = 'give each line an "id" of its own'
            raise BadInput("described more than once", met=f"{len(parts)} lines", wanted="one line a sample", do=do)
        (line,) = parts
        if "broken" in line:
            raise BadInput("not a sample", met=line["broken"], wanted='{"image": PATH, "objects": [...]}')
        frames = [line["image"]] if "image" in line else line.get("frames")
        if not isinstance(frames, list) or not frames or not all(isinstance(name, str) for name in frames):
            raise BadInput("no picture named", met=str(frames)[:80], wanted='"image": PATH or "frames": [PATH, ...]')
        pictures = [(name, read_picture(below(root, name))) for name in frames]
        sizes = [(picture.height, picture.width) for _, picture in pictures]
        described = line.get("objects", [])
        if not isinstance(described, list) or not all(isinstance(item, dict) for item in described):
            raise BadInput("no list of objects", met=str(described)[:80], wanted='"objects": [{...}, ...]')
        candidates = [_candidate(root, number, item, sizes) for number, item in enumerate(described)]
        more = {key: value for key, value in line.items() if key not in ("image", "frames", "objects")}
        return sample_of(path, self.name, pictures, candidates, {"source_json": more} if more else None)


def _find_lines(root: Path, records: RecordsWriter) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with open_text(root / LINES) as file:
        for number, raw in enumerate(entries(root / LINES, iter(partial(file.readline, _MOST_BYTES), b"")), 1):
            if not raw.strip():
                continue
            if not counts["lines"] and _ONE_DOCUMENT.match(raw + file.peek(1)[:1]):
                met, do = (
                    f"{raw[:20].decode('latin-1')!a} in line {number}",
                    "write it with json.dumps, a line each",
                )
                raise UserError("not JSON Lines", where=str(root / LINES), met=met, wanted="one sample a line", do=do)
            counts["lines"] += 1
            try:
                line = parse_json(raw.rstrip(), f"{LINES}#line-{number}", _MOST_BYTES)
                first = str(line["image"] if "image" in line else line["frames"][0])
                path = f"{first}#{line['id']}" if "id" in line else first
                counts["objects"] += len(line.get("objects", ()))
            except (BadInput, ValueError, KeyError, TypeError, IndexError) as error:
                counts["lines that are no sample"] += 1
                path = f"{LINES}#line-{number}"
                met = str(error.met if isinstance(error, BadInput) else f"{type(error).__name__} {error}")
                met = met.replace("line 1, ", "")  # each is a text of its own to the parser
                records.add(path, len(raw))
                records.attach(path, {"broken": met})
                continue
            records.add(path, _size(root, first))
            records.attach(path, line)
    return dict(counts)


def _find_beside(root: Path, records: RecordsWriter) -> dict[str, int]:
    """`images/A.jpg` with `masks/A.png` (an object's id in each pixel) or `masks/A/*.png` (one object each)."""
    counts: Counter[str] = Counter()
    for path, size in sorted(walk(root, _is_picture, counts, records, lambda name: True, "images")):
        place = PurePosixPath("masks") / PurePosixPath(path).relative_to("images").with_suffix("")
        records.add(path, size)
        counts["images"] += 1
        if (root / place).is_dir():
            own = [name for name in listed(root / place) if PurePosixPath(name).suffix.lower() == ".png"]
            objects: list[dict[str, Any]] = [
                {"id": PurePosixPath(name).stem, "mask": str(place / name)} for name in own
            ]
        else:
            single = f"{place}.png"
            objects = [{"id": str(value), "mask": single, "value": value} for value in _values(root / single)]
        counts["images without masks"] += not objects
        counts["objects"] += len(objects)
        records.attach(path, {"image": path, "objects": objects})
    return dict(counts)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _PICTURES


def _values(file: Path) -> list[int]:
    """The ids in a mask of many objects: every value but 0."""
    try:
        image = open_image(file)
    except BadInput:
        return []
    if image.mode == "1":
        return [1]
    return [int(value) for value in np.unique(np.asarray(image)) if value] if image.mode in ("L", "P") else []


def _candidate(root: Path, number: int, item: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> Candidate:
    given = [item["mask"]] if "mask" in item else item.get("masks", [])
    if not isinstance(given, list) or len(given) != len(sizes):
        met = f"object {number}: {str(given)[:60]}"
        raise BadInput("masks of an object", met=met, wanted=f"{len(sizes)}, one a frame")
    texts = item.get("texts", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("texts of an object", met=f"object {number}: {str(texts)[:60]}", wanted="a list of texts")
    more = {key: value for key, value in item.items() if key not in ("id", "mask", "masks", "texts", "value")}
    pairs = zip(given, sizes, strict=True)
    readers = [partial(_read_mask, root, mask, item.get("value"), size) for mask, size in pairs]
    return Candidate(RawObject(str(item.get("id", number)), tuple(texts), more), readers)


def _read_mask(root: Path, mask: Any, value: int | None, size: tuple[int, int]) -> Bool:
    """A mask as a path, run lengths or polygons; None where the object is not in the frame."""
    if mask is None:
        return np.zeros(size, np.bool_)
    if not isinstance(mask, str):
        return masks.from_coco(mask, *size)
    image = open_image(below(root, mask))
    decoded = masks.from_image(image, None if image.mode == "1" else value)
    if decoded.shape != size:
        met, wanted = f"{decoded.shape[0]} x {decoded.shape[1]}", f"{size[0]} x {size[1]}"
        raise BadInput("mask and picture differ in size", met=met, wanted=wanted)
    return decoded


def _size(root: Path, path: str) -> int:
    try:
        return below(root, path).stat().st_size
    except (OSError, BadInput):
        return 0
