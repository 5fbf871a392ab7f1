"""A user's own data: pictures with masks, as one JSON file of lines or records, two folders, or labelme's files.

`docs/datasets/folder.md` is the schema.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.annotations import parse_json
from pipeline.boundary import track_entries
from pipeline.cropped import Bool, Mask
from pipeline.finder import below, finder_at, inside, locate_file
from pipeline.fit import check_size, note_size_differences
from pipeline.ids import as_id
from pipeline.mask_values import distinct, values_of
from pipeline.pictures import open_image, read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.sources import Source
from pipeline.sources.annotations_json import (
    FILE,
    find_annotations_json,
    is_annotations_json,
    load_annotations_json,
)
from pipeline.sources.image_mask_folders import find_image_mask_folders, load_image_mask_folders
from pipeline.sources.labelme import find_labelme, is_labelme, load_labelme
from pipeline.sources.objects import Candidate, sample_of
from pipeline.text import open_text
from shards.errors import BadInput, UserError

LINES = "samples.jsonl"
# One list or one object over several lines; a list of something else is one broken line.
_ONE_DOCUMENT = re.compile(rb"\s*(\[\s*\{|[\[{]\s*\n.)", re.DOTALL)
_MOST_BYTES = 64 << 20  # per line


class FolderSource(Source):
    name = "folder"
    choices: Mapping[str, Any] = {"void": None, "mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        if (root / LINES).exists():
            return _find_lines(root, records)
        if is_annotations_json(root):
            return find_annotations_json(root, records)
        if (root / "images").is_dir() and (root / "masks").is_dir():
            return find_image_mask_folders(root, records)
        if is_labelme(root):
            return find_labelme(root, records)
        if (root / FILE).exists():  # broken, or of another form: say what is wrong with it
            return find_annotations_json(root, records)
        raise UserError(
            "not a folder of this kind",
            where=str(root),
            wanted=f"{LINES}, or {FILE}, or images/ and masks/, or labelme's json files",
        )

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        part = next(parts)
        if "record" in part:
            return [path]
        if "masks" in part:
            return [path, *part["masks"]["files"]]
        if "labelme" in part:
            return [path, *filter(None, [part["labelme"]["picture"]])]
        elsewhere = part.get("elsewhere", {})
        return [elsewhere.get(name, name) for name in _names(part.get("line", {}))]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        if "record" in parts[0]:
            return load_annotations_json(root, path, parts)
        if len(parts) != 1:
            raise BadInput(
                "described more than once",
                met=f"{len(parts)} lines",
                wanted="one line a sample",
                do='give each line an "id" of its own',
            )
        if "broken" in parts[0]:
            raise BadInput("not a sample", met=parts[0]["broken"], wanted='{"image": PATH, "objects": [...]}')
        if "masks" in parts[0]:
            return load_image_mask_folders(root, path, parts[0]["masks"], options)
        if "labelme" in parts[0]:
            return load_labelme(root, path, parts[0]["labelme"])
        line = parts[0]["line"]
        elsewhere = parts[0].get("elsewhere", {})
        frames = [line["image"]] if "image" in line else line.get("frames")
        if not isinstance(frames, list) or not frames or not all(isinstance(name, str) for name in frames):
            raise BadInput("no picture named", met=str(frames)[:80], wanted='"image": PATH or "frames": [PATH, ...]')
        pictures = [(name, read_picture(locate_file(root, elsewhere.get(name, name)))) for name in frames]
        sizes = [(picture.height, picture.width) for _, picture in pictures]
        described = line.get("objects", [])
        if not isinstance(described, list) or not all(isinstance(item, dict) for item in described):
            raise BadInput("no list of objects", met=str(described)[:80], wanted='"objects": [{...}, ...]')
        candidates = [
            _candidate(root, number, item, sizes, options, elsewhere) for number, item in enumerate(described)
        ]
        more = {key: value for key, value in line.items() if key not in ("image", "frames", "objects")}
        raw = sample_of(path, self.name, pictures, candidates, {"source_json": more} if more else None)
        return note_size_differences(raw)


def _find_lines(root: Path, records: RecordsWriter) -> dict[str, int]:
    counts: Counter[str] = Counter()
    finder_at.cache_clear()
    with open_text(root / LINES) as file:
        for number, raw in enumerate(track_entries(root / LINES, iter(partial(file.readline, _MOST_BYTES), b"")), 1):
            if not raw.strip():
                continue
            if not counts["lines"] and _ONE_DOCUMENT.match(raw + file.peek(1)[:1]):
                raise UserError(
                    "not JSON Lines",
                    where=str(root / LINES),
                    met=f"{raw[:20].decode('latin-1')!a} in line {number}",
                    wanted="one sample a line",
                    do="write it with json.dumps, a line each",
                )
            counts["lines"] += 1
            try:
                line = parse_json(raw.rstrip(), f"{LINES}#line-{number}", _MOST_BYTES)
                first = str(line["image"] if "image" in line else line["frames"][0])
                path = f"{first}#{line['id']}" if "id" in line else first
                counts["objects"] += len(line.get("objects", ()))
            except (BadInput, ValueError, KeyError, TypeError, IndexError) as error:
                counts["lines that are no sample"] += 1
                path = f"{LINES}#line-{number}"
                fault = str(error.met if isinstance(error, BadInput) else f"{type(error).__name__} {error}")
                fault = fault.replace("line 1, ", "")  # the parser gets one line at a time
                records.add(path, len(raw))
                records.attach(path, {"broken": fault})
                continue
            elsewhere = _elsewhere(root, _names(line))
            records.add(path, _size(root, elsewhere.get(first, first)))
            records.attach(path, {"line": line, **({"elsewhere": elsewhere} if elsewhere else {})})
    return dict(counts)


def _names(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that a line names; parts of other shapes are skipped."""
    objects = [item for item in _as_list(line.get("objects")) if isinstance(item, dict)]
    masks = [mask for item in objects for mask in (item.get("mask"), *_as_list(item.get("masks")))]
    for name in (line.get("image"), *_as_list(line.get("frames")), *masks):
        if isinstance(name, str):
            yield name


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _elsewhere(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> alike path, for the names under which there is no file."""
    missing = [name for name in names if not (inside(name) and os.path.lexists(root / name))]
    found = {name: finder_at(root).locate(name) for name in dict.fromkeys(missing)}
    return {name: path for name, path in found.items() if path is not None}


def _candidate(
    root: Path,
    number: int,
    item: dict[str, Any],
    sizes: Sequence[tuple[int, int]],
    options: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> Candidate:
    stated = [item["mask"]] if "mask" in item else item.get("masks", [])
    if not isinstance(stated, list) or len(stated) != len(sizes):
        raise BadInput(
            "masks of an object", met=f"object {number}: {str(stated)[:60]}", wanted=f"{len(sizes)}, one a frame"
        )
    texts = item.get("texts", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("texts of an object", met=f"object {number}: {str(texts)[:60]}", wanted="a list of texts")
    more = {key: value for key, value in item.items() if key not in ("id", "mask", "masks", "texts", "value")}
    stated = [elsewhere.get(mask, mask) if isinstance(mask, str) else mask for mask in stated]
    pairs = zip(stated, sizes, strict=True)
    value = _value_of(item.get("value"))
    readers = [partial(_read_mask, root, mask, value, size, options, len(stated) == 1) for mask, size in pairs]
    return Candidate(RawObject(str(item.get("id", number)), tuple(texts), more), readers)


def _value_of(stated: Any) -> int | None:
    """Return the id of an object in its mask file; None where the file is of this object alone."""
    number = as_id(stated)
    if stated is not None and (number is None or not number.isdecimal()):
        raise BadInput("an object's value", met=repr(stated)[:60], wanted="a whole number >= 0")
    return None if number is None else int(number)


def _read_mask(
    root: Path, mask: Any, value: int | None, size: tuple[int, int], options: Mapping[str, Any], alone: bool
) -> Bool | Mask:
    """Read a mask (H, W).

    Args:
        mask: a path, run lengths or polygons; None where the object is not in the frame.
        alone: it is the only frame: a mask without the object's value is a fault, and no absence.
    """
    if mask is None or (not mask and not alone):
        return np.zeros(size, np.bool_)
    if not isinstance(mask, str):
        return masks.read_coco(mask, *size)
    image = open_image(locate_file(root, mask))
    value = None if image.mode == "1" else value
    decoded = masks.from_image(image, value, options.get("void"))
    if alone and value is not None and not decoded.any():
        values = ", ".join(map(str, distinct(values_of(image))[:6]))
        raise BadInput("no pixel of the object's value", met=f"values {values}", wanted=f"{value}")
    check_size(decoded.shape, size, options.get("mask_slack", 0))
    return decoded


def _size(root: Path, path: str) -> int:
    try:
        return below(root, path).stat().st_size
    except (OSError, BadInput):
        return 0
