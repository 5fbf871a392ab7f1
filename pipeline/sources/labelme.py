"""Labelme's files: one JSON per picture, with the shapes drawn on it. `docs/datasets/folder.md`."""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.annotations import read_json
from pipeline.cropped import Bool
from pipeline.finder import Finder, below
from pipeline.pictures import open_image, read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.regions import size_of
from pipeline.sources.objects import Candidate, sample_of
from pipeline.walk import matching, walk
from shards.errors import BadInput, UserError

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NO_OBJECTS = ("__ignore__", "_background_")  # labels that labelme's converters skip
_POLYGONS = ("polygon", "quadrilateral", "rotation")
_CIRCLE = 64  # corners
_PROBES = 3  # files that show whether a folder is labelme's
IGNORED = "shapes left out: their label says that they are no object"
BY_JSON = "pictures found by the name of their json: imagePath names none that is there"
Size = tuple[int, int]


def is_labelme(root: Path) -> bool:
    """Whether one of the first JSON files below `root` has shapes."""
    return any(map(_has_shapes, _first_jsons(root)))


def find_labelme(root: Path, records: RecordsWriter) -> dict[str, int]:
    """Add every JSON below `root`. Its picture is beside it, or at its `imagePath`."""
    counts: Counter[str] = Counter()
    _finder.cache_clear()
    files = dict(walk(root, _is_either, counts, records, lambda name: True))
    pictures = {PurePosixPath(path).with_suffix("").as_posix(): path for path in files if not _is_json(path)}
    jsons = sorted(filter(_is_json, files))
    for path in jsons:
        beside = pictures.get(PurePosixPath(path).with_suffix("").as_posix())
        records.add(path, files[path])
        records.attach(path, {"labelme": {"beside": beside, "picture": beside or _picture_elsewhere(root, path)}})
    counts["annotation files"] = len(jsons)
    counts["images without a json of their name"] = len(pictures.keys() - {path[: -len(".json")] for path in jsons})
    return dict(counts)


def load_labelme(root: Path, path: str, found: Mapping[str, Any]) -> RawSample:
    """Return the sample of the JSON at `path`; raises `BadInput` where it is not labelme's, or has no picture."""
    content = read_json(below(root, path))
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise BadInput("not labelme's json", met=str(content)[:60], wanted='"shapes": [{...}, ...], "imagePath": NAME')
    notes: Counter[str] = Counter()
    name = _picture(root, path, content.get("imagePath"), found["beside"], notes)
    picture = read_picture(below(root, name), size_of(content, "imageHeight", "imageWidth"))
    size = (picture.height, picture.width)
    candidates = [_candidate(number, parts, size) for number, parts in enumerate(_objects(shapes, notes))]
    raw = sample_of(path, "folder", [(name, picture)], candidates, _rest(content))
    return replace(raw, notes=Counter(raw.notes) + notes)


def _picture(root: Path, path: str, stated: Any, beside: str | None, notes: Counter[str]) -> str:
    """Return the picture of the JSON at `path`, relative to the root."""
    finder = _finder(root, PurePosixPath(path).parent.as_posix())
    named = finder.locate(stated) if isinstance(stated, str) else None
    if named and beside and named != beside:  # a copied JSON: it is unknown which picture the shapes belong to
        raise BadInput(
            "a json of two pictures",
            met=f"imagePath {stated!r} beside {PurePosixPath(beside).name}",
            wanted="one picture",
            do="mend imagePath",
        )
    if named:
        return named
    if beside:
        notes[BY_JSON] += 1
        return beside
    raise finder.missing(str(stated))


def _picture_elsewhere(root: Path, path: str) -> str | None:
    """Return the picture that a JSON names, for one without a picture beside it; None where there is none."""
    try:
        content = read_json(below(root, path))
    except BadInput:
        return None
    stated = content.get("imagePath") if isinstance(content, dict) else None
    return _finder(root, PurePosixPath(path).parent.as_posix()).locate(stated) if isinstance(stated, str) else None


@lru_cache(maxsize=64)
def _finder(root: Path, folder: str) -> Finder:
    here = PurePosixPath(folder)
    around = [here, *(here.parent / name for name in ("images", "imgs", "JPEGImages")), PurePosixPath("images")]
    return Finder(root, [place.as_posix() for place in (*around, PurePosixPath("."))])


def _objects(shapes: Sequence[dict[str, Any]], notes: Counter[str]) -> list[list[dict[str, Any]]]:
    """Return the shapes of each object: those of one label and group are one object."""
    objects: list[list[dict[str, Any]]] = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for shape in shapes:
        label = shape.get("label")
        group = shape.get("group_id")
        if label in _NO_OBJECTS:
            notes[IGNORED] += 1
        elif group is None:
            objects.append([shape])
        elif (key := (str(label), str(group))) in groups:
            groups[key].append(shape)
        else:
            groups[key] = [shape]
            objects.append(groups[key])
    return objects


def _candidate(number: int, shapes: Sequence[dict[str, Any]], size: Size) -> Candidate:
    label = shapes[0].get("label")
    texts = (label,) if isinstance(label, str) and label.strip() else ()
    kept = ("group_id", "flags", "description", "shape_type")
    more = {key: shapes[0][key] for key in kept if shapes[0].get(key)}
    return Candidate(RawObject(str(number), texts, more), [partial(_union, shapes, size)])


def _union(shapes: Sequence[dict[str, Any]], size: Size) -> Bool:
    whole = np.zeros(size, np.bool_)
    for shape in shapes:
        whole |= _mask(shape, size)
    return whole


def _mask(shape: Mapping[str, Any], size: Size) -> Bool:
    """Return a shape's pixels: (H, W) bool."""
    kind = shape.get("shape_type") or "polygon"
    points = points_of(shape.get("points"))
    draw = _DRAW.get(str(kind))
    if draw is None:
        raise BadInput("a shape without an area", met=str(kind)[:40], wanted=" or ".join(_DRAW))
    return draw(points, shape, size)


def points_of(stated: Any) -> list[tuple[float, float]]:
    """Return the points (x, y) of a shape; raises `BadInput` where they are not pairs of finite numbers."""
    pairs = stated if isinstance(stated, list) else []
    fits = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in pair)
        for pair in pairs
    )
    if not pairs or not fits:
        raise BadInput("broken points of a shape", met=str(stated)[:60], wanted="[[x, y], ...]")
    return [(float(x), float(y)) for x, y in pairs]


def _polygon(points: list[tuple[float, float]], shape: Mapping[str, Any], size: Size) -> Bool:
    return masks.from_coco([[value for point in points for value in point]], *size)


def _rectangle(points: list[tuple[float, float]], shape: Mapping[str, Any], size: Size) -> Bool:
    if len(points) == 2:  # two opposite corners
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return _polygon(points, shape, size)


def _circle(points: list[tuple[float, float]], shape: Mapping[str, Any], size: Size) -> Bool:
    if len(points) != 2:
        raise BadInput("broken points of a shape", met=f"{len(points)} of a circle", wanted="its centre and its rim")
    (x, y), (rim_x, rim_y) = points
    radius = math.hypot(rim_x - x, rim_y - y)
    angles = [2 * math.pi * n / _CIRCLE for n in range(_CIRCLE)]
    return _polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], shape, size)


def _bitmap(points: list[tuple[float, float]], shape: Mapping[str, Any], size: Size) -> Bool:
    """Return the mask of a PNG in base64; the first point is its upper left corner."""
    if not isinstance(shape.get("mask"), str):
        raise BadInput("broken mask of a shape", met=str(shape.get("mask"))[:40], wanted="a PNG in base64")
    try:
        data = base64.b64decode(shape["mask"], validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("broken mask of a shape", met=str(shape.get("mask"))[:40], wanted="a PNG in base64") from None
    pixels = np.asarray(open_image(data).convert("L")) > 0
    (high, wide) = pixels.shape
    left = round(points[0][0])
    top = round(points[0][1])
    whole = np.zeros(size, np.bool_)
    if left < 0 or top < 0 or top + high > size[0] or left + wide > size[1]:
        raise BadInput(
            "a mask that leaves its picture",
            met=f"{high} x {wide} at row {top}, column {left}",
            wanted=f"inside {size[0]} x {size[1]}",
        )
    whole[top : top + high, left : left + wide] = pixels
    return whole


_Draw = Callable[[list[tuple[float, float]], Mapping[str, Any], Size], Bool]
_DRAW: Mapping[str, _Draw] = {
    **dict.fromkeys(_POLYGONS, _polygon),
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _bitmap,
}


def _rest(content: Mapping[str, Any]) -> dict[str, object] | None:
    rest = {key: value for key, value in content.items() if key not in ("shapes", "imageData") and value}
    return {"source_json": rest} if rest else None


def _first_jsons(root: Path) -> list[Path]:
    """Return a few JSON files of the root, or of its folders where the root has none."""
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
        if found := matching(root, pattern)[:_PROBES]:
            return found
    return []


def _has_shapes(path: Path) -> bool:
    try:
        content = read_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json")


def _is_either(name: str) -> bool:
    return _is_json(name) or PurePosixPath(name).suffix.lower() in _PICTURES
