"""Find COCO's annotation files and their pictures: as released, and as labelling tools export them.

`docs/datasets/coco.md` has the table.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from pipeline.finder import Finder
from pipeline.walk import list_names
from shards.errors import UserError

_YEARS = tuple(f"{part}{year}" for year in (2017, 2014) for part in ("train", "val", "test"))
_USUAL = ("", "images", *_YEARS, *(f"images/{year}" for year in _YEARS))
_TOOLS = ("images/{split}", "{split}", "{split}/images", "{split}/data", "images/default", "data", "JPEGImages")
_SAME_SPLIT = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
# For one split each: Roboflow; several converters.
_BY_SPLIT = (
    *("{split}/_annotations.coco.json", "annotations/{split}.json", "{split}.json", "annotations/{split}_coco.json"),
    *(
        "{split}/annotations.json",
        "{split}/labels.json",
        "annotations_{split}.json",
        "annotations/annotations_{split}.json",
    ),
)
# For everything: a folder of Roboflow's, CVAT, Label Studio, FiftyOne, others. They are the split `train`, the default.
_UNSPLIT = (
    *("_annotations.coco.json", "annotations/instances_default.json", "instances_default.json", "result.json"),
    *("result_coco.json", "labels.json", "annotations.json", "annotations/annotations.json", "instances.json"),
    *("annotations/instances.json", "coco.json", "annotations/coco.json", "annotations.coco.json"),
)
_GZIP = ".gz"


def annotation_file(root: Path, pattern: str, split: str, tools: bool = True) -> tuple[Path, list[str]]:
    """Return the annotation file of a split, and the folders, relative to the root, where its pictures may be.

    Args:
        pattern: the released file's name, with {split}; it is in the root or its `annotations`.
        tools: whether files of labelling tools are searched where there is no file of this name.

    Raises:
        UserError: no file, or several.
    """
    released = _released(root, pattern, split)
    exported = _exported(root, split) if tools and not released and "/" not in split else []
    found = released or exported
    if len(found) != 1:
        there = found or _released(root, pattern, "", any_split=True)
        raise UserError(
            "annotation file",
            where=str(root),
            met=", ".join(
                path.relative_to(root).name if not exported else str(path.relative_to(root)) for path in there
            )
            or "none",
            wanted=f"one {pattern.format(split=split)}",
            do="move the others away, or rename one as COCO's are called"
            if exported
            else "say which with --split"
            if there
            else "see docs/datasets/coco.md for the layout",
        )
    if released:
        return found[0], [*_USUAL, *(folder.format(split=split) for folder in _TOOLS)]
    parent = found[0].parent.relative_to(root).as_posix()
    parent = "" if parent in (".", "annotations") else parent
    beside = [folder for name in ("", "images", "data") if (folder := f"{parent}/{name}".strip("/")) or not parent]
    names = [name for group in _SAME_SPLIT if split in group for name in group] or [split]
    exported_folders = [folder.format(split=name) for name in names for folder in _TOOLS]
    return found[0], [*dict.fromkeys((*beside, *exported_folders, *_USUAL))]


def image_finder(root: Path, folders: Sequence[str] = _USUAL) -> Finder:
    """Return a finder of the images of a COCO-like dataset: in `folders`, then in the usual ones."""
    return Finder(root, [*folders, *_USUAL])


def _released(root: Path, pattern: str, split: str, any_split: bool = False) -> list[Path]:
    """Return the files of this name. The split is a name, and no pattern."""
    if "/" in split:
        return []
    before, after = pattern.lower().split("{split}")
    found = []
    for folder in (root, root / "annotations"):
        names = _names(folder)
        exact = [name for name in names if _fits(name, before, split, after, any_split)]
        found += [folder / name for name in exact]
    # The same, ignoring case: CVAT's subset `Train` is instances_Train.json.
    return found or [
        folder / name
        for folder in (root, root / "annotations")
        for name in _names(folder)
        if _fits(name.lower(), before, split.lower(), after, any_split)
    ]


def _fits(name: str, before: str, split: str, after: str, any_split: bool) -> bool:
    name = name.removesuffix(_GZIP)
    start = before if any_split else before + split
    return name.startswith(start) and fnmatch.fnmatchcase(name[len(start) :], after)


def _exported(root: Path, split: str) -> list[Path]:
    names = next((group for group in _SAME_SPLIT if split in group), (split,))
    places = [pattern.format(split=name) for name in (split, *names) for pattern in _BY_SPLIT]
    for some in (places, _UNSPLIT if split == "train" else ()):
        candidates = [name for place in dict.fromkeys(some) for name in (place, place + _GZIP)]
        if found := [root / place for place in candidates if (root / place).is_file()]:
            return found
    return []


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, without compressed copies of files that are there."""
    try:
        names = list_names(folder)
    except OSError:
        return []
    return [name for name in names if name.removesuffix(_GZIP) == name or name.removesuffix(_GZIP) not in names]
