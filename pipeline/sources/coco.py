"""COCO and LVIS: every annotated object of an image, its category as text. `docs/datasets/coco.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import masks
from pipeline.annotations import read_items
from pipeline.finder import Finder, below
from pipeline.fit import note_size_differences
from pipeline.ids import as_id, id_of
from pipeline.pictures import read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.regions import size_of
from pipeline.sources import Source
from pipeline.sources.coco_layouts import annotation_file, image_finder
from pipeline.sources.objects import Candidate, sample_of
from shards.errors import BadInput

ONE_ID = "one id for two pictures"
_AGAIN = "height and width, where it is listed again"
ReadTexts = Callable[[dict[str, Any]], tuple[str, ...]]


class Coco(Source):
    """One sample per image.

    Args:
        name: the source's name.
        pattern: the annotation file's name, with {split}.
    """

    choices: Mapping[str, Any] = {"split": "train", "mask_slack": 0}

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        self._pattern = pattern

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        file, folders = annotation_file(root, self._pattern, str(choices["split"]), tools=self.name == "coco")
        counts = Counter(dict.fromkeys(("images", "images without a file"), 0))
        names = category_names(file, counts)
        paths = add_images(file, image_finder(root, folders), records, counts)
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

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        return image_sample(root, path, self.name, parts, _category, {}, options.get("mask_slack", 0))


def _category(annotation: dict[str, Any]) -> tuple[str, ...]:
    return (annotation["category"],) if annotation.get("category") else ()


def category_names(file: Path, counts: Counter[str]) -> dict[str | None, str]:
    """Return id -> name of the categories of an instances file.

    An id that two categories of different names share is left out: it does not identify a category.
    """
    names: dict[str | None, str] = {}
    shared: set[str] = set()
    for item in read_items(file, "categories.item"):
        number = id_of(item)
        name = item.get("name") if isinstance(item, dict) else None
        if number is None or not isinstance(name, str) or not name:
            counts["categories without an id or a name"] += 1
        elif names.setdefault(number, name) != name:
            shared.add(number)
            counts["categories that share an id: their objects have no name"] += 1
    return {number: name for number, name in names.items() if number not in shared}


def add_images(
    file: Path,
    finder: Finder,
    records: RecordsWriter,
    counts: Counter[str],
    ids: Container[str | None] | None = None,
) -> dict[str | None, str]:
    """Add the images of an instances file. Returns id -> path of the input.

    Args:
        ids: of the images to add; None for all.
    """
    paths: dict[str | None, str] = {}
    for image in read_items(file, "images.item"):
        number = id_of(image)
        if number is None:
            counts["images of another shape"] += 1
            continue
        if ids is not None and number not in ids:
            continue
        name = _file_name(image)
        path, size, new = finder.add(name, records)
        first = paths.setdefault(number, path)
        if first != path:  # it is unknown which of the two an outline was drawn on
            value = f"image {number} is {first} and {path}"
            error = BadInput(ONE_ID, met=value, wanted="an id for each", do="mend the annotations")
            for input_path in (first, path):
                refuse(records, input_path, error)
            counts["images that share an id with another file"] += 1
        if new:
            records.attach(path, {**image, "file_name": name})
            counts["images"] += 1
            counts["images without a file"] += size == 0
        else:  # another id of one picture: its objects are the picture's
            records.attach(path, {_AGAIN: size_of(image)})
            counts["images listed twice"] += 1
    finder.refuse_shared(records)
    return paths


def _file_name(image: dict[str, Any]) -> str:
    """Return an image's file name. LVIS states none; its `coco_url` ends with folder and name."""
    if name := image.get("file_name"):
        return str(name)
    return "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def image_sample(
    root: Path,
    path: str,
    kind: str,
    parts: Sequence[Any],
    read_texts: ReadTexts,
    more: Mapping[str, Any],
    slack: int,
    further: Sequence[Candidate] = (),
    no_target: bool = False,
) -> RawSample:
    """Return the sample of an image with the objects that `find` attached to it.

    Args:
        read_texts: returns the texts of an object.
        slack: pixels by which each side of the picture may differ from what the image's record states.
        further: objects beside those of `parts`.
        no_target: see `sample_of`.
    """
    raise_refused(parts)
    image, *rest = parts
    annotations = [part for part in rest if _AGAIN not in part]
    size = size_of(image)
    if size is None:
        raise BadInput(
            "image without its size",
            met=f"height {image.get('height')}, width {image.get('width')}"[:80],
            wanted="whole numbers of pixels",
        )
    if others := [part[_AGAIN] for part in rest if _AGAIN in part and part[_AGAIN] != [*size]]:
        raise BadInput(
            "listed twice with different sizes", met=f"{[*size]} and {others[0]}", wanted="one height and width"
        )
    picture = read_picture(below(root, path), size, slack=slack)
    candidates = [_candidate(annotation, size, read_texts(annotation)) for annotation in annotations]
    pictures = [(PurePosixPath(path).name, picture)]
    raw = sample_of(path, kind, pictures, [*candidates, *further], {"image": image, **more}, no_target)
    return note_size_differences(raw)


def _candidate(annotation: dict[str, Any], size: tuple[int, int], texts: tuple[str, ...]) -> Candidate:
    more = {key: value for key, value in annotation.items() if key not in ("segmentation", "id", "image_id")}
    read = partial(masks.read_coco, annotation.get("segmentation"), *size)
    return Candidate(RawObject(as_id(annotation["id"]) or "", texts, more), (read,))


COCO = Coco("coco", "instances_{split}*.json")
LVIS = Coco("lvis", "lvis_v1_{split}*.json")
