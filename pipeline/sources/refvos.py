"""Referring video segmentation: some frames of a video, its objects, all its expressions. `docs/datasets/refvos.md`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.annotations import read_pairs
from pipeline.faults import Fault
from pipeline.finder import below
from pipeline.fit import note_size_differences
from pipeline.ids import as_id
from pipeline.pictures import read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.frame_choice import ShownObjects, choose_frames
from pipeline.sources.frame_files import FrameFiles
from pipeline.sources.objects import Candidate, sample_of
from pipeline.sources.refvos_masks import MaskLists, PickledMasks, PngMasks
from pipeline.walk import list_names
from shards.errors import BadInput, UserError
from shards.hidden import is_hidden

_NO_SUCH_OBJECT = "2"  # of ReVOS' `type_id`


@dataclass(frozen=True)
class Layout:
    """The files of a dataset, as found below its root."""

    where: Path
    """The file of expressions, for messages."""
    videos: Iterable[tuple[str, Any]]
    """Name of each video, and its entry in the file of expressions."""
    pictures: str
    """Folder with a folder of frames per video, relative to the root."""
    annotations: str = ""
    """Folder with a folder of palette PNGs per video, relative to the root; empty: masks are in a file."""
    masks: Path | None = None
    """JSON: annotation id -> list of masks. Pickle: number of the expression -> list of masks."""
    categories: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Video -> object -> category."""
    without: frozenset[str] = frozenset()
    """Videos that the file lists and that belong to another split."""


class RefVos(Source):
    """One sample per video. It has no object where all expressions of the video are of no object.

    Args:
        name: the source's name.
        layout: finds the files of a split below the root; raises `UserError` where they are missing.
        ids: the key by which an expression names its objects.
    """

    choices: Mapping[str, Any] = {"split": "train", "frames": 5, "mask_slack": 0}

    def __init__(self, name: str, layout: Callable[[Path, str], Layout], ids: str) -> None:
        self.name = name
        self._layout = layout
        self._ids = ids

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        layout = self._layout(root, str(choices["split"]))
        pickled = PickledMasks(layout.masks) if layout.masks and layout.masks.suffix == ".pkl" else None
        counts: Counter[str] = Counter()
        paths: dict[str, list[str]] = {}
        known: set[str] = set()
        for name, body in layout.videos:
            twice = name in known
            known.add(name)
            if name in layout.without:
                counts["videos of another split"] += 1
                continue
            try:
                described = _described(name, body, layout, self._ids)
                of_pickle = pickled.of_video(described) if pickled else {}
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    "not the entry of a video",
                    where=str(layout.where),
                    met=f"video {name!r}: {type(error).__name__} {error}",
                ) from None
            path = described["path"]
            objects = _objects(described)
            if twice:  # it is unknown which expressions and frames are meant
                twin = BadInput("a video listed twice", met=f"{name} in {layout.where.name}", wanted="one entry")
                refuse(records, path, twin)
                counts["videos listed twice"] += 1
                continue
            size, pictures = _folder_size(root, path)
            records.add(path, size)
            records.attach(path, {**described, "bytes_of_masks": _folder_size(root, described["annotations"])[0]})
            for number, lists in of_pickle.items():
                records.attach(path, {"object": number, "masks": lists})
            for number in objects:
                paths.setdefault(number, []).append(path)
            counts["videos"] += 1
            counts["videos without frames"] += pictures == 0
            counts["expressions"] += len(described["expressions"])
            counts["expressions without an object"] += sum(not item["objects"] for item in described["expressions"])
            counts["objects"] += len(objects)
        if pickled:
            pickled.check_all_taken()
        elif layout.masks:
            for key, lists in read_pairs(layout.masks):
                number = as_id(key) or key
                videos = dict.fromkeys(paths.get(number, ()))
                counts["objects that several videos share"] += len(videos) > 1
                for path in videos:
                    records.attach(path, {"object": number, "masks": lists})
                counts["masks that no expression of this split refers to"] += number not in paths
        if layout.pictures and (root / layout.pictures).is_dir() and not any("/" in name for name in known):
            counts["folders of frames without expressions"] = len({*list_names(root / layout.pictures)} - known)
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        video = next(parts)
        yield from (f"{path}/{name}.jpg" for name in video["frames"])
        if video["annotations"]:
            yield from (f"{video['annotations']}/{name}.png" for name in video["frames"])

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        video, *mask_parts = parts
        folder = below(root, path)
        objects = _objects(video)
        for name in video["frames"]:
            below(root, name)
        if not objects and not (video["expressions"] and all(map(_says_its_objects, video["expressions"]))):
            raise BadInput("expressions without objects", met="texts alone", wanted="a split with masks")
        read = open_masks(root, video, mask_parts)
        files = FrameFiles(folder)
        usable = [n for n, name in enumerate(video["frames"]) if read.has(n) and files.named(name)]
        if not usable:
            raise BadInput(
                "no frames",
                where=path,
                met=f"none of {len(video['frames'])} listed frames has both",
                wanted="pictures with masks",
            )

        def faults() -> list[Fault]:
            return [(number, fault) for number in objects if (fault := read.fault(number)) is not None]

        shown: ShownObjects = lambda i: read.shown(usable[i]) & {*objects}  # noqa: E731
        chosen = [usable[i] for i in choose_frames(len(usable), options["frames"], shown, {*objects}, faults)]
        sizes = [read.size(n) if objects or video["annotations"] else None for n in chosen]
        names = [video["frames"][n] for n in chosen]
        slack = options.get("mask_slack", 0)
        pictures = [
            (name, read_picture(files.named(name) or folder / name, size, slack=slack))
            for name, size in zip(names, sizes, strict=True)
        ]
        candidates = [
            Candidate(
                _object(number, video),
                [partial(read.mask, n, number, *size) for n, size in zip(chosen, sizes, strict=True) if size],
            )
            for number in objects
        ]
        more = {"split": options["split"], "video": video["video"], "expressions": video["expressions"]}
        sample = sample_of(path, self.name, pictures, candidates, more, no_target=not objects)
        raw = note_size_differences(sample)
        notes = {**raw.notes, "frames without a picture or mask": len(video["frames"]) - len(usable)}
        return RawSample(path, self.name, raw.frames, raw.objects, raw.more, notes)


def open_masks(root: Path, video: Mapping[str, Any], parts: Sequence[Any]) -> PngMasks | MaskLists:
    """Return the masks of a video.

    Args:
        root: the dataset's folder.
        video: the first part that `find` attached.
        parts: the others.
    """
    if video["annotations"]:
        return PngMasks(below(root, video["annotations"]), video["frames"])
    return MaskLists(parts, video["frames"], _objects(video))


def _described(name: str, body: Any, layout: Layout, ids: str) -> dict[str, Any]:
    """Return what `find` attaches to a video. Expressions are in the order of their ids as texts."""
    expressions = []
    for number, item in sorted(body["expressions"].items()):
        refers = item.get(ids)
        if not isinstance(item["exp"], str):
            raise TypeError(f"expression {number} is no text")
        objects = refers if isinstance(refers, list) else [] if refers is None else [refers]
        rest = {key: value for key, value in item.items() if key != "exp"}
        objects = [*dict.fromkeys(_object_id(number) for number in objects)]
        expressions.append({**rest, "id": number, "text": item["exp"], "objects": objects})
    return {
        "path": f"{layout.pictures}/{name}".lstrip("/"),
        "annotations": f"{layout.annotations}/{name}" if layout.annotations else "",
        "frames": sorted(map(str, body["frames"])),
        "expressions": expressions,
        "categories": layout.categories.get(name, {}),
        "video": {"id": name, **{key: body[key] for key in body if key not in ("expressions", "frames")}},
    }


def _says_its_objects(expression: Mapping[str, Any]) -> bool:
    """Whether an expression is known to mean the objects that it names, or none."""
    stated = any(expression.get(key) is not None for key in ("obj_id", "anno_id"))
    return stated or as_id(expression.get("type_id")) == _NO_SUCH_OBJECT


def _object_id(value: Any) -> str:
    number = as_id(value)
    if number is None:
        raise TypeError(f"{str(value)[:40]!r} is no id of an object")
    return number


def _objects(video: Mapping[str, Any]) -> list[str]:
    return [*dict.fromkeys(number for item in video["expressions"] for number in item["objects"])]


def _object(number: str, video: Mapping[str, Any]) -> RawObject:
    """Return an object with its texts: the expressions that refer to it and to no other."""
    texts = tuple(item["text"] for item in video["expressions"] if item["objects"] == [number])
    category = video["categories"].get(number)
    return RawObject(number, texts, {"category": category} if category else {})


def _folder_size(root: Path, path: str) -> tuple[int, int]:
    """Return (bytes, number of files) of a folder; zeros where there is none inside of the root."""
    try:
        if not path:
            return 0, 0
        with os.scandir(below(root, path)) as found:
            sizes = [entry.stat().st_size for entry in found if entry.is_file() and not is_hidden(entry.name)]
    except (OSError, BadInput):
        return 0, 0
    return sum(sizes), len(sizes)
