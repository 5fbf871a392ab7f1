"""COCO and LVIS: every annotated object of an image, its category as text. `docs/datasets/coco.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ijson

from pipeline import masks
from pipeline.pictures import read_picture
from pipeline.raw import RawInput, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources.objects import Candidate, inside, sample_of
from shards.errors import BadInput, UserError


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
        names = {item["id"]: item["name"] for item in stream(file, "categories.item")}
        return index_instances(root, file, names, records)

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        return {}

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        image, *annotations = parts
        size = (image["height"], image["width"])
        picture = read_picture(inside(root, path), size)
        candidates = [_candidate(annotation, size) for annotation in annotations]
        return sample_of(path, self.name, [(PurePosixPath(path).name, picture)], candidates, {"image": image})


def _candidate(annotation: dict[str, Any], size: tuple[int, int]) -> Candidate:
    texts = (annotation["category"],) if annotation.get("category") else ()
    more = {key: value for key, value in annotation.items() if key not in ("segmentation", "id", "image_id")}
    read = partial(masks.from_coco, annotation.get("segmentation"), *size)
    return Candidate(RawObject(str(annotation["id"]), texts, more), (read,))


def annotation_file(root: Path, pattern: str) -> Path:
    """The one file in `root` or its `annotations` that fits `pattern`; raises `UserError` for none or several."""
    found = sorted({*root.glob(pattern), *root.glob(f"annotations/{pattern}")})
    if len(found) != 1:
        met = ", ".join(path.name for path in found) or "none"
        do = "say which with --split" if found else "see docs/datasets/ for the layout"
        raise UserError("annotation file", where=str(root), met=met, wanted=f"one {pattern}", do=do)
    return found[0]


def stream(file: Path, prefix: str) -> Iterator[Any]:
    """The items at `prefix` of a JSON file of any size, one by one; raises `UserError` where it is broken."""
    try:
        with open(file, "rb") as opened:
            yield from ijson.items(opened, prefix, use_float=True)
    except OSError as error:
        raise UserError("cannot be read", where=str(file), met=str(error.strerror)) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        met = str(error).splitlines()[0]
        raise UserError("not whole JSON", where=str(file), met=met, do="fetch it again") from None


def index_instances(root: Path, file: Path, names: Mapping[int, str], records: RecordsWriter) -> dict[str, int]:
    """Put down the images of an instances file, each with what it says of the image and then of each object."""
    paths: dict[int, str] = {}
    folders = ImageFolders(root)
    counts: Counter[str] = Counter()
    for image in stream(file, "images.item"):
        name = _file_name(image)
        path, size = folders.find(name)
        if image["id"] in paths:
            counts["images listed twice"] += 1
            continue
        paths[image["id"]] = path
        records.add(path, size)
        records.attach(path, {**image, "file_name": name})
        counts["images"] += 1
        counts["images without a file"] += size == 0
    for annotation in stream(file, "annotations.item"):
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


class ImageFolders:
    """Where the images of a COCO-like dataset lie: probed once for each folder, not for each image."""

    def __init__(self, root: Path, folders: Sequence[str] = ()) -> None:
        years = [f"{part}{year}" for year in (2017, 2014) for part in ("train", "val", "test")]
        usual = ["", "images", *years, *(f"images/{year}" for year in years)]
        self._root = root
        self._folders = [folder for folder in [*folders, *usual] if (root / folder).is_dir()]

    def find(self, name: str) -> tuple[str, int]:
        """The path of the image called `name`, relative to the root, and its bytes: 0 where there is none."""
        short = PurePosixPath(name).name.rsplit("_", 1)[-1]  # COCO 2017 dropped "COCO_train2014_"
        for i, folder in enumerate(self._folders):
            for form in dict.fromkeys((name, PurePosixPath(name).name, short)):
                path = (PurePosixPath(folder) / form).as_posix()
                try:
                    size = inside(self._root, path).stat().st_size
                except (OSError, BadInput):
                    continue
                self._folders.insert(0, self._folders.pop(i))  # the next one is likely beside it
                return path, size
        return name.replace("..", "_").lstrip("/") or "unnamed", 0
