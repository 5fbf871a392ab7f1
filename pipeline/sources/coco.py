"""COCO and LVIS: every annotated object of an image, its category as text. `docs/datasets/coco.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import masks
from pipeline.annotations import PictureFinder, below, coco_names, inside, read_items
from pipeline.pictures import read_picture
from pipeline.raw import RawInput, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources.objects import Candidate, sample_of
from shards.errors import UserError

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
        file = annotation_file(root, self._pattern.format(split=choices["split"]))
        names = {item["id"]: item["name"] for item in read_items(file, "categories.item")}
        return index_instances(root, file, names, records)

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        return {}

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        return image_sample(root, path, self.name, parts, _category, {})


def _category(annotation: dict[str, Any]) -> tuple[str, ...]:
    return (annotation["category"],) if annotation.get("category") else ()


def annotation_file(root: Path, pattern: str) -> Path:
    """The one file in `root` or its `annotations` that fits `pattern`; raises `UserError` for none or several."""
    found = sorted({*root.glob(pattern), *root.glob(f"annotations/{pattern}")})
    if len(found) != 1:
        met = ", ".join(path.name for path in found) or "none"
        do = "say which with --split" if found else "see docs/datasets/ for the layout"
        raise UserError("annotation file", where=str(root), met=met, wanted=f"one {pattern}", do=do)
    return found[0]


def index_instances(root: Path, file: Path, names: Mapping[int, str], records: RecordsWriter) -> dict[str, int]:
    """Put down the images of an instances file, each with what it says of the image and then of each object."""
    paths: dict[int, str] = {}
    finder = image_finder(root)
    counts: Counter[str] = Counter()
    for image in read_items(file, "images.item"):
        name = _file_name(image)
        path, size = place_of(finder, name)
        if image["id"] in paths:
            counts["images listed twice"] += 1
            continue
        paths[image["id"]] = path
        records.add(path, size)
        records.attach(path, {**image, "file_name": name})
        counts["images"] += 1
        counts["images without a file"] += size == 0
    for annotation in read_items(file, "annotations.item"):
        if annotation.get("image_id") not in paths:
            counts["objects of no listed image"] += 1
            continue
        records.attach(paths[annotation["image_id"]], {**annotation, "category": names.get(annotation["category_id"])})
        counts["objects"] += 1
    return dict(counts)


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
    size = (image["height"], image["width"])
    picture = read_picture(below(root, path), size)
    candidates = [_candidate(annotation, size, texts_of(annotation)) for annotation in annotations]
    return sample_of(path, kind, [(PurePosixPath(path).name, picture)], candidates, {"image": image, **more})


def _candidate(annotation: dict[str, Any], size: tuple[int, int], texts: tuple[str, ...]) -> Candidate:
    more = {key: value for key, value in annotation.items() if key not in ("segmentation", "id", "image_id")}
    read = partial(masks.from_coco, annotation.get("segmentation"), *size)
    return Candidate(RawObject(str(annotation["id"]), texts, more), (read,))
