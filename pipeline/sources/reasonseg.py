"""ReasonSeg: questions about one target per picture, in a JSON beside it. `docs/datasets/reasonseg.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from pipeline.annotations import parse_json
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.pictures import read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.labelme import points_of
from pipeline.sources.objects import Candidate, sample_of
from pipeline.text import read_text
from pipeline.walk import walk
from shards.errors import BadInput, UserError

_BASES = ("", "ReasonSeg", "reason_seg/ReasonSeg")
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MAX_JSON = 1 << 26  # bytes
_FARTHEST = 1 << 20  # pixels from the picture's corner
_NO_SHAPE = "flag"
_TARGET = 1
_IGNORE = 2
FLAGS = "shapes left out: their label is flag"
NO_AREA = "shapes left out: fewer than three corners"
OLD_ENCODING = "jsons in Windows-1252 instead of UTF-8"


class ReasonSeg(Source):
    """One sample per picture, with one object: the union of its targets. Without a shape it has no object."""

    name = "reasonseg"
    choices: Mapping[str, Any] = {"split": "train"}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Pair the pictures and JSONs of a split's folder. A JSON without a picture is an input that is refused."""
        folder = _folder_of(root, str(choices["split"]))
        counts = Counter(dict.fromkeys(("images", "images without a json", "jsons without an image"), 0))
        pictures: dict[str, list[str]] = {}
        jsons: dict[str, tuple[str, int]] = {}
        for path, size in sorted(walk(root, _is_either, counts, records, lambda name: True, folder)):
            stem = PurePosixPath(path).with_suffix("").as_posix()
            if path.lower().endswith(".json"):
                jsons[stem] = (path, size)
            else:
                pictures.setdefault(stem, []).append(path)
                records.add(path, size)
        counts["images"] = sum(map(len, pictures.values()))
        for stem, paths in pictures.items():
            for path in paths:
                if stem not in jsons:
                    error = BadInput("an image without its json", met="a picture alone", wanted=f"{stem}.json")
                    refuse(records, path, error)
                    counts["images without a json"] += 1
                elif len(paths) > 1:
                    value = ", ".join(PurePosixPath(one).name for one in paths)
                    refuse(records, path, BadInput("a json of two pictures", met=value, wanted="one picture"))
                else:
                    records.attach(path, {"json": jsons[stem][0]})
        for stem in jsons.keys() - pictures.keys():
            path, size = jsons[stem]
            error = BadInput("a json without its image", met=path, wanted=f"{PurePosixPath(stem).name}.jpg")
            refuse(records, path, error, size)
            counts["jsons without an image"] += 1
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [path, *(part["json"] for part in parts if "json" in part)]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        notes: Counter[str] = Counter()
        content = _read(below(root, parts[0]["json"]), notes)
        shapes = _shapes(content["shapes"], notes)
        picture = read_picture(below(root, path))
        values = draw(shapes, (picture.height, picture.width))
        has_target = any(value == _TARGET for value, _ in shapes)
        more = {"is_sentence": content["is_sentence"]}
        target = RawObject("target", tuple(content["text"]), more)
        candidates = [Candidate(target, (lambda: np.asarray(values == _TARGET),))] if has_target else []
        ignore: Bool = np.asarray(values == _IGNORE)
        extra = {"split": options["split"], **({"ignore": _run_lengths(ignore)} if ignore.any() else {})}
        no_target = bool(content["text"]) and not content["shapes"]
        if no_target:
            texts = enumerate(content["text"])
            extra |= more | {"expressions": [{"id": str(n), "text": text, "objects": []} for n, text in texts]}
        raw = sample_of(path, self.name, [(PurePosixPath(path).name, picture)], candidates, extra, no_target)
        return replace(raw, notes=Counter(raw.notes) + notes)


def draw(shapes: Sequence[tuple[int, Sequence[tuple[int, int]]]], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Draw polygons in the order of their areas, the largest first, so that a smaller one is over a larger one.

    Args:
        shapes: value and corners (x, y) of each. A polygon's outline belongs to it.
        size: (H, W) of the picture.

    Returns:
        (H, W) uint8: the value of the last polygon over a pixel, 0 where there is none.
    """
    areas = [int(np.count_nonzero(_polygon(points, size))) for _, points in shapes]
    values = np.zeros(size, np.uint8)
    # Of equal areas the later one is drawn first, as in LISA's code, which reverses an ascending order.
    for number in sorted(range(len(shapes)), key=lambda n: (areas[n], n), reverse=True):
        value, points = shapes[number]
        values[_polygon(points, size)] = value
    return values


def _polygon(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> Bool:
    image = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(image).polygon(points, fill=1, outline=1)
    return np.asarray(image) > 0


def _folder_of(root: Path, split: str) -> str:
    """Return the folder of a split, relative to the root; raises `UserError` where there is none."""
    places = [f"{base}/{split}".lstrip("/") for base in _BASES]
    named = bool(split) and "/" not in split and not split.startswith(".")
    found = next((place for place in places if named and (root / place).is_dir()), None)
    if found is None:
        there = [name for base in _BASES for name in ("train", "val", "test") if (root / base / name).is_dir()]
        raise UserError(
            "no such split",
            where=str(root),
            met=split if not there else f"{split}; there are {', '.join(there)}",
            wanted="a folder train, val or test with pictures and their json files",
            do="say which with --split, or give --root",
        )
    return found


def read_texts(file: Path) -> tuple[list[str], bool]:
    """Return the texts of a picture's JSON, and whether they are sentences; raises `BadInput`."""
    content = _read(file, Counter())
    return content["text"], content["is_sentence"]


def _read(file: Path, notes: Counter[str]) -> dict[str, Any]:
    """Return a picture's JSON, its outer levels checked; raises `BadInput`."""
    data = read_text(file, _MAX_JSON)
    try:
        data.decode()
    except UnicodeDecodeError:  # some of the released files
        data = data.decode("cp1252", "replace").encode()
        notes[OLD_ENCODING] += 1
    content = parse_json(data, str(file), _MAX_JSON)
    fields = content if isinstance(content, dict) else {}
    text = fields.get("text")
    shapes = fields.get("shapes")
    if not (
        isinstance(text, list)
        and all(isinstance(one, str) for one in text)
        and isinstance(fields.get("is_sentence"), bool)
        and isinstance(shapes, list)
        and all(isinstance(shape, dict) for shape in shapes)
    ):
        value = str({key: fields.get(key) for key in ("text", "is_sentence")}) if fields else str(content)
        raise BadInput(
            "not ReasonSeg's json",
            met=value[:100],
            wanted='"text": [TEXT, ...], "is_sentence": true or false, "shapes": [{...}, ...]',
        )
    return fields


def _shapes(stated: Sequence[Mapping[str, Any]], notes: Counter[str]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return value and corners of each shape. A label that contains "ignore" is ignored, any other is a target."""
    shapes = []
    for shape in stated:
        label = shape.get("label")
        if not isinstance(label, str):
            raise BadInput("a shape without a label", met=str(label)[:40], wanted="target or ignore")
        if label.lower() == _NO_SHAPE:
            notes[FLAGS] += 1
            continue
        if (kind := shape.get("shape_type") or "polygon") != "polygon":
            raise BadInput("a shape that is no polygon", met=str(kind)[:40], wanted="polygon")
        points = points_of(shape.get("points"))
        if any(abs(value) > _FARTHEST for point in points for value in point):
            raise BadInput("broken points of a shape", met=str(points)[:60], wanted=f"at most {_FARTHEST} pixels away")
        if len(points) < 3:
            notes[NO_AREA] += 1
            continue
        shapes.append((_IGNORE if "ignore" in label.lower() else _TARGET, [(int(x), int(y)) for x, y in points]))
    return shapes


def _run_lengths(mask: Bool) -> dict[str, Any]:
    """Return a mask (H, W) as COCO's compressed run lengths, as JSON holds them."""
    encoded = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [*mask.shape], "counts": encoded["counts"].decode("ascii")}


def _is_either(name: str) -> bool:
    return name.lower().endswith((*_PICTURES, ".json"))
