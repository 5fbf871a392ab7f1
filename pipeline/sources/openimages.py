"""Open Images V7 segmentation: photos, mask PNGs, a table of objects. `docs/datasets/openimages.md`."""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.archives import member_path, read_member, zip_members
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.pictures import open_image, read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources import Source
from pipeline.sources.objects import NO_OBJECT, Candidate, sample_of
from pipeline.tables import read_table
from pipeline.walk import HIDDEN, NOT_READ, count_other, matching
from shards.errors import BadInput, DroppedInput, UserError
from shards.hidden import is_hidden, is_hidden_path

_SPLITS = ("train", "validation", "test")
# Places of files: as the owners' pages provide them, or as FiftyOne downloads them.
_TABLES = (
    *(f"{folder}{{split}}-annotations-object-segmentation.csv" for folder in ("", "annotations/", "{split}/")),
    *("{split}/labels/segmentations.csv", "labels/segmentations.csv"),
)
_CLASSES = tuple(
    f"{folder}{name}"
    for name in (
        "oidv7-class-descriptions.csv",
        "class-descriptions-boxable.csv",
        "class-descriptions.csv",
        "classes.csv",
    )
    for folder in ("", "annotations/", "{split}/", "metadata/", "{split}/metadata/")
)
_PHOTOS = ("images/{split}", "{split}/data", "data", "{split}", "images")
_MASKS = ("masks/{split}", "{split}/labels/masks", "labels/masks", "{split}-masks", "{split}/masks", "masks")
_ZIPS = tuple(f"{folder}{{split}}-masks-*.zip" for folder in ("", "masks/", "masks/{split}/", "{split}/"))
_NUMBERS = ("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU")
_NEEDED = ("MaskPath", "ImageID", "LabelName")


class OpenImages(Source):
    """One sample per photo, with all its masks. A mask and its photo usually have different sizes."""

    name = "openimages"
    choices: Mapping[str, Any] = {"split": "train"}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        split = choices["split"]
        if split not in _SPLITS:
            raise UserError("no such split", where="--split", met=str(split), wanted=" or ".join(_SPLITS))
        table = _first(root, _TABLES, split, "table of objects")
        names = _class_names(_first(root, _CLASSES, split, "class descriptions"))
        folder = _first(root, _PHOTOS, split, "folder of photos").relative_to(root).as_posix()
        counts: Counter[str] = Counter()
        for name, size in _photos(root / folder, counts):
            records.add(f"{folder}/{name}", size)
            counts["images"] += 1
        # Names are counted as 64-bit hashes: there are millions. Kept sorted: parts must come in one order everywhere.
        stored = array("q")
        listed = array("q")
        described = array("q")
        for mask, place in _stored_masks(root, split, counts):
            records.attach(_photo(folder, mask.split("_")[0]), {"mask": mask, **place})
            stored.append(hash(mask))
        missing = 0
        for row, whole in _rows(table):
            path = _photo(folder, row["ImageID"])
            missing += records.add(path, 0)
            texts = [names[row["LabelName"]]] if row.get("LabelName") in names else []
            records.attach(path, {"row": row, "texts": texts, **({} if whole else {"broken": True})})
            listed.append(hash(row.get("MaskPath", "").rpartition("/")[2]))
            described.append(hash(row["ImageID"]))
            counts["objects"] += 1
            counts["objects of a class without a name"] += not texts
            counts["broken rows"] += not whole
        if not counts["objects"]:
            raise UserError("a table without an object", where=str(table), met="no row", wanted="one an object")
        if repeated := len(stored) - len(np.unique(stored)):
            counts["mask files that are there more than once, of which the first is taken"] = repeated
        counts["images without a file"] = missing
        counts["images without an object"] = counts["images"] - (len(np.unique(described)) - missing)
        counts["objects without a mask file"] = int((~np.isin(listed, stored)).sum())
        counts["mask files without an object"] = int((~np.isin(stored, listed)).sum())
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [path, *(part["file"] for part in parts if "mask" in part)]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        rows = [part for part in parts if "row" in part]
        if not rows:
            raise DroppedInput(NO_OBJECT, met="a picture alone", wanted="at least one object")
        places: dict[str, Any] = {}
        for part in parts:
            if "mask" in part:
                places.setdefault(part["mask"], part)
        picture = read_picture(below(root, path), stored=True)  # masks are drawn on the picture as it is stored
        candidates = [
            Candidate(
                RawObject(
                    PurePosixPath(part["row"].get("MaskPath", "")).stem, tuple(part["texts"]), _more(part["row"])
                ),
                (partial(_mask, root, part, places, (picture.height, picture.width)),),
            )
            for part in rows
        ]
        name = PurePosixPath(path).name
        more: dict[str, object] = {"image_id": rows[0]["row"]["ImageID"], "split": options["split"]}
        return sample_of(path, self.name, [(name, picture)], candidates, more)


def _mask(root: Path, part: Mapping[str, Any], places: Mapping[str, Any], size: tuple[int, int]) -> Bool:
    """Return the mask of a row at its own size (H', W'), which has the aspect ratio of the photo's `size` (H, W)."""
    if part.get("broken"):
        raise BadInput("broken row", met=str(part["row"])[:80], wanted="as many values as the table has columns")
    below(root, part["row"]["MaskPath"])
    place = places.get(PurePosixPath(part["row"]["MaskPath"]).name)
    if place is None:
        raise BadInput("no mask file", met=part["row"]["MaskPath"], wanted="a file of this name")
    file = below(root, place["file"])
    mask = masks.from_image(open_image(read_member(file, place) if "at" in place else file))
    (height, width) = size
    (high, wide) = mask.shape
    # One picture resized to two sizes whose sides were rounded: each side may be off by a pixel.
    if abs(wide * height - high * width) > height + width + high + wide:
        raise BadInput(
            "mask and picture differ in shape", met=f"{high} x {wide}", wanted=f"the shape of {height} x {width}"
        )
    return mask


def _more(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the row's columns; boxes and the score as numbers, None where they are empty."""
    return {key: _number(text) if key in _NUMBERS else text for key, text in row.items()}


def _number(text: str) -> float | str | None:
    try:
        number = float(text)
    except ValueError:
        return text or None
    return number if math.isfinite(number) else text


def _photo(folder: str, image: str) -> str:
    if "/" not in image:  # the usual case, millions of times
        return f"{folder}/{image}.jpg"
    return (PurePosixPath(folder) / f"{image}.jpg").as_posix()


def _first(root: Path, patterns: Sequence[str], split: str, what: str) -> Path:
    for pattern in patterns:
        if (path := root / pattern.format(split=split)).exists():
            return path
    raise UserError(
        f"no {what}",
        where=str(root),
        wanted=patterns[0].format(split=split),
        do="see docs/datasets/openimages.md for the layout",
    )


def _photos(folder: Path, counts: Counter[str]) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".jpg"):
                count_other(entry.name, counts)
            elif is_hidden(entry.name):
                counts[HIDDEN] += 1
            else:
                yield entry.name, entry.stat().st_size if entry.is_file() else 0


def _stored_masks(root: Path, split: str, counts: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and place of every mask: in the first of the usual folders that exists, and in zips."""
    patterns = [root / pattern.format(split=split) for pattern in _MASKS]
    for folder in [path for path in patterns if path.is_dir()][:1]:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
        for masks_folder in (folder, *subfolders):  # FiftyOne: by the first letter
            place = masks_folder.relative_to(root).as_posix()
            for name in sorted(os.listdir(masks_folder)):
                if not name.endswith(".png"):
                    if not is_hidden(name) and not (masks_folder / name).is_dir():
                        count_other(name, counts, NOT_READ[0])
                elif is_hidden(name):
                    counts[HIDDEN] += 1
                else:
                    yield name, {"file": f"{place}/{name}"}
    for pattern in _ZIPS:
        for file in matching(root, pattern.format(split=split)):
            path = file.relative_to(root).as_posix()
            for name, member in zip_members(file):
                if not name.endswith(".png"):
                    if not is_hidden_path(name):
                        count_other(name, counts, NOT_READ[0])
                    continue
                if is_hidden_path(name):
                    counts[HIDDEN] += 1
                    continue
                try:
                    inner = member_path(name).rpartition("/")[2]
                except BadInput:
                    counts["zip members that would leave their folder"] += 1
                    continue
                yield inner, {"file": path, **member}


def _class_names(file: Path) -> dict[str, str]:
    """Return machine id -> name, from a table with or without a header."""
    names: dict[str, str] = {}
    for number, row in enumerate(read_table(file)):
        if number == 0 and not row[0].startswith("/"):
            continue
        if len(row) < 2:
            raise UserError("not a table of classes", where=str(file), met=str(row), wanted="LabelName,DisplayName")
        names[row[0]] = row[1]
    return names


def _rows(file: Path) -> Iterator[tuple[dict[str, str], bool]]:
    """Yield the rows of the table of objects, and whether each has a value for every column."""
    lines = read_table(file)
    header = next(lines, [])
    if missing := [name for name in _NEEDED if name not in header]:
        raise UserError(
            "not a table of objects",
            where=str(file),
            met=",".join(header)[:80] or "no line",
            wanted="a first line with " + ", ".join(missing),
        )
    for values in lines:
        row = dict(zip(header, values, strict=False))
        yield {"ImageID": "", **row}, len(values) == len(header)
