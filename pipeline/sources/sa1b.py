"""SA-1B: a photo and its json, in folders or in the released tars. `docs/datasets/sa1b.md`."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.annotations import parse_json
from pipeline.archives import member_path, read_member, tar_members
from pipeline.finder import below
from pipeline.fit import note_size_differences
from pipeline.ids import id_of
from pipeline.input_files import read_input
from pipeline.pictures import read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.objects import Candidate, sample_of
from pipeline.walk import HIDDEN, walk
from shards.errors import BadInput
from shards.hidden import is_hidden_path, visible_counterpart

_DEPTH = 3  # levels of folders: root / one folder per tar / img or js
_KINDS = (".jpg", ".json", ".tar")
_MAX_JSON = 1 << 28
MemberPlace = tuple[str, dict[str, Any]]  # path below the root, and the place of its bytes


class Sa1b(Source):
    """One sample per photo, with all its masks. From a tar beside its unpacked files, only the rest is read."""

    name = "sa1b"
    choices: Mapping[str, Any] = {"mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        counts = Counter({"images": 0, "images without a json": 0, "jsons without an image": 0, "paired": 0})
        names = array("q")  # of photos, as hashes: there are millions
        # Photos first, so that each JSON can be paired with its photo.
        for path, size in walk(root, partial(_is_named, suffix=_KINDS), counts, records, _is_photo, depth=_DEPTH):
            if path.endswith(".jpg"):
                records.add(path, size)
                names.append(hash(PurePosixPath(path).name))
                counts["images"] += 1
        _annotate(_files(root, ".json", records), records, counts)
        for path, where in _files(root, ".tar", records):
            self._find_in_tar(root, path, where["bytes"], records, counts, names)
        counts["images without a json"] = counts["images"] - counts.pop("paired")
        if repeated := len(names) - len(np.unique(names)):
            counts["images that are there more than once, each an input"] = repeated
        return dict(counts)

    def _find_in_tar(
        self, root: Path, tar: str, size: int, records: RecordsWriter, counts: Counter[str], names: array[int]
    ) -> None:
        beside = [folder for folder in (root / tar).parent.glob(f"{PurePosixPath(tar).stem}/") if folder.is_dir()]
        beside.append((root / tar).parent)
        jsons: list[MemberPlace] = []
        try:
            for name, member in tar_members(root / tar):
                if is_hidden_path(name.removeprefix("./")):
                    counts[HIDDEN] += _is_named(visible_counterpart(PurePosixPath(name).name), (".jpg", ".json"))
                    continue
                if not _is_named(PurePosixPath(name).name, (".jpg", ".json")):
                    counts["tar members that are neither"] += 1
                    continue
                if any((folder / PurePosixPath(name).name).exists() for folder in beside):
                    counts["tar members left for their unpacked files"] += 1
                    continue
                try:
                    path = f"{tar}/{member_path(name)}"
                except BadInput as error:
                    _refuse(f"{tar}/{name}", member["bytes"], error, records, counts)
                    continue
                where = {"file": tar, **member}
                if path.endswith(".json"):
                    jsons.append((path, where))
                elif records.add(path, member["bytes"]):
                    records.attach(path, {"picture": where})
                    names.append(hash(PurePosixPath(path).name))
                    counts["images"] += 1
                else:
                    counts["images twice in a tar"] += 1
        except BadInput as error:  # members before the damage are kept
            _refuse(tar, size, error, records, counts)
        _annotate(jsons, records, counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        found = [*parts]
        places = [part[kind]["file"] for part in found for kind in ("picture", "annotation") if kind in part]
        return places if any("picture" in part for part in found) else [path, *places]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        annotations = [part for part in parts if "annotation" in part]
        if len(annotations) != 1:
            raise BadInput(
                "more than one json for an image" if annotations else "an image without its json",
                met=", ".join(part["annotation"]["file"] for part in annotations) or "a picture alone",
                wanted=f"one {PurePosixPath(path).stem}.json",
            )
        if annotations[0].get("alone"):
            raise BadInput(
                "a json without its image", met=annotations[0]["annotation"]["file"], wanted=PurePosixPath(path).name
            )
        body = _read_json(root, annotations[0]["annotation"], PurePosixPath(path).stem)
        size = (body["image"]["height"], body["image"]["width"])
        packed = next((part["picture"] for part in parts if "picture" in part), None)
        slack = options.get("mask_slack", 0)
        picture = read_picture(_read(root, packed) if packed else below(root, path), size, slack=slack)
        candidates = [_candidate(annotation, size) for annotation in body["annotations"]]
        more = {"image": body["image"]}
        return note_size_differences(
            sample_of(path, self.name, [(PurePosixPath(path).name, picture)], candidates, more)
        )


def _candidate(annotation: Any, size: tuple[int, int]) -> Candidate:
    number = id_of(annotation)
    if number is None:
        raise BadInput("not SA-1B's json", met=str(annotation)[:60], wanted="annotations with an id")
    more = {key: value for key, value in annotation.items() if key not in ("segmentation", "id")}
    read = partial(masks.read_coco, annotation.get("segmentation"), *size)
    return Candidate(RawObject(number, (), more), (read,))


def _read_json(root: Path, where: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """Return the JSON of the image called `stem`, its outer levels checked."""
    body = parse_json(_read(root, where), where["file"], _MAX_JSON)
    try:
        image = body["image"]
        size = (image["height"], image["width"])
        fits = all(isinstance(side, int) and side > 0 for side in size) and isinstance(body["annotations"], list)
    except (KeyError, TypeError, IndexError):
        fits = False
    if not fits:
        raise BadInput("not SA-1B's json", met=where["file"], wanted="image with height and width, annotations")
    named = PurePosixPath(str(image.get("file_name", stem))).stem
    if named != stem:
        raise BadInput("json of another image", met=named, wanted=stem)
    return dict(body)


def _read(root: Path, where: Mapping[str, Any]) -> bytes:
    file = below(root, where["file"])
    return read_member(file, where) if "at" in where else read_input(file, _MAX_JSON)


def _annotate(jsons: Iterable[MemberPlace], records: RecordsWriter, counts: Counter[str]) -> None:
    for path, where in jsons:
        image = _image_of(path)
        alone = records.add(image, 0)
        records.attach(image, {"annotation": where, **({"alone": True} if alone else {})})
        counts["jsons without an image" if alone else "paired"] += 1


def _image_of(json_path: str) -> str:
    path = PurePosixPath(json_path).with_suffix(".jpg")
    return str(path.parent.with_name("img") / path.name if path.parent.name == "js" else path)


def _refuse(path: str, size: int, error: BadInput, records: RecordsWriter, counts: Counter[str]) -> None:
    """Add it as an input of its own, so that it goes to the ledger."""
    refuse(records, path, error, size)
    counts[error.what] += 1


def _files(root: Path, suffix: str, records: RecordsWriter) -> Iterator[MemberPlace]:
    """Yield SA-1B's files of one suffix below `root`: a folder may hold millions."""
    uncounted = Counter[str]()  # counted with the photos
    for path, size in walk(root, partial(_is_named, suffix=suffix), uncounted, records, depth=_DEPTH):
        yield path, {"file": path, "bytes": size}


def _is_photo(name: str) -> bool:
    return name.startswith("sa_")


def _is_named(name: str, suffix: str | tuple[str, ...]) -> bool:
    return name.startswith("sa_") and name.endswith(suffix)
