"""COCO and LVIS: every annotated object of an image, its category as text. `docs/datasets/coco.md`."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import masks
from pipeline.annotations import read_items
from pipeline.finder import PictureFinder, below, coco_names, inside
from pipeline.ids import as_id, id_of
from pipeline.pictures import read_picture
from pipeline.raw import RawInput, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.regions import size_of
from pipeline.sources.objects import Candidate, sample_of
from shards.errors import BadInput, UserError

TextsOf = Callable[[dict[str, Any]], tuple[str, ...]]


class Coco:
    """One sample an image.

    Args:
        name: of the source.
        pattern: of the annotation file's name, with {split}.
    """

    choices: Mapping[str, Any] = {"split": "train"}

    def __init__(self, name: str, pattern: str) -> None:
        self.name, self._pattern = name, pattern

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        file = annotation_file(root, self._pattern, str(choices["split"]))
        counts = Counter(dict.fromkeys(("images", "images without a file"), 0))
        names = category_names(file, counts)
        paths = put_down_images(file, image_finder(root), records, counts)
        for annotation in read_items(file, "annotations.item"):
            if id_of(annotation) is None:
                counts["objects of another shape"] += 1
            elif (path := paths.get(id_of(annotation, "image_id"))) is None:
                counts["objects of no listed image"] += 1
            else:
                category = names.get(id_of(annotation, "category_id"))
                records.attach(path, {**annotation, "category": category})
                counts["objects"] += 1
                if category is None:
                    counts["objects of a category without a name"] += 1
        return dict(counts)

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        return {}

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        return image_sample(root, path, self.name, parts, _category, {})


def _category(annotation: dict[str, Any]) -> tuple[str, ...]:
    return (annotation["category"],) if annotation.get("category") else ()


def annotation_file(root: Path, pattern: str, split: str) -> Path:
    """The one file of `split` in `root` or its `annotations`; raises `UserError` for none or several."""
    folders = (root, root / "annotations")
    wanted = pattern.format(split=glob.escape(split)) if "/" not in split else ""
    found = sorted({path for folder in folders if wanted for path in folder.glob(wanted)})
    if len(found) != 1:
        there = found or sorted({path for folder in folders for path in folder.glob(pattern.format(split=""))})
        met = ", ".join(path.name for path in there) or "none"
        do = "say which with --split" if there else "see docs/datasets/coco.md for the layout"
        raise UserError("annotation file", where=str(root), met=met, wanted=f"one {pattern.format(split=split)}", do=do)
    return found[0]


def category_names(file: Path, counts: Counter[str]) -> dict[str | None, str]:
    """Id -> name of the categories of an instances file.

    An id that two categories of different names share has no name: nobody can tell which one an object is of.
    """
    names: dict[str | None, str] = {}
    shared: set[str] = set()
    for item in read_items(file, "categories.item"):
        number, name = id_of(item), item.get("name") if isinstance(item, dict) else None
        if number is None or not isinstance(name, str) or not name:
            counts["categories without an id or a name"] += 1
        elif names.setdefault(number, name) != name:
            shared.add(number)
            counts["categories that share an id: their objects have no name"] += 1
    return {number: name for number, name in names.items() if number not in shared}


def put_down_images(
    file: Path,
    finder: PictureFinder,
    records: RecordsWriter,
    counts: Counter[str],
    wanted: Container[str | None] | None = None,
) -> dict[str | None, str]:
    """Put down the images of an instances file, of the ids `wanted` where they are given: id -> path of the input."""
    paths: dict[str | None, str] = {}
    for image in read_items(file, "images.item"):
        number = id_of(image)
        if number is None:
            counts["images of another shape"] += 1
            continue
        if wanted is not None and number not in wanted:
            continue
        name = _file_name(image)
        path, size = place_of(finder, name)
        if number in paths or not records.add(path, size):
            counts["images listed twice"] += 1
            paths.setdefault(number, path)  # another id of one picture: its objects are the picture's
            continue
        paths[number] = path
        records.attach(path, {**image, "file_name": name})
        counts["images"] += 1
        counts["images without a file"] += size == 0
    return paths


def _file_name(image: dict[str, Any]) -> str:
    """LVIS has no `file_name`; its `coco_url` ends with folder and name."""
    if name := image.get("file_name"):
        return str(name)
    return "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def image_finder(root: Path, folders: Sequence[str] = ()) -> PictureFinder:
    """Finds the images of a COCO-like dataset: in `folders`, or where they usually lie."""
    years = [f"{part}{year}" for year in (2017, 2014) for part in ("train", "val", "test")]
    return PictureFinder(root, [*folders, "", "images", *years, *(f"images/{year}" for year in years)])


def place_of(finder: PictureFinder, name: str) -> tuple[str, int]:
    """Path and bytes of the image called `name`; 0 bytes where there is none, or where it would lie elsewhere."""
    return finder.find(*coco_names(name)) if inside(name) else (name, 0)


def image_sample(
    root: Path, path: str, kind: str, parts: Sequence[Any], texts_of: TextsOf, more: Mapping[str, Any]
) -> RawSample:
    """A sample of an image and its objects, as `find` attached them; `texts_of` gives the texts of an object."""
    image, *annotations = parts
    size = size_of(image)
    if size is None:
        met = f"height {image.get('height')}, width {image.get('width')}"
        raise BadInput("image without its size", met=met[:80], wanted="whole numbers of pixels")
    picture = read_picture(below(root, path), size)
    candidates = [_candidate(annotation, size, texts_of(annotation)) for annotation in annotations]
    return sample_of(path, kind, [(PurePosixPath(path).name, picture)], candidates, {"image": image, **more})


def _candidate(annotation: dict[str, Any], size: tuple[int, int], texts: tuple[str, ...]) -> Candidate:
    more = {key: value for key, value in annotation.items() if key not in ("segmentation", "id", "image_id")}
    read = partial(masks.from_coco, annotation.get("segmentation"), *size)
    return Candidate(RawObject(as_id(annotation["id"]) or "", texts, more), (read,))
