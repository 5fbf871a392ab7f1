"""Osprey-724K: regions of COCO and part pictures with conversations or descriptions. `docs/datasets/osprey.md`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import read_items
from pipeline.faults import unusable
from pipeline.finder import Finder, below
from pipeline.ids import as_id
from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.regions import Regions, picture_for, rle_size, size_of
from pipeline.sources import Source
from shards.errors import BadInput, UserError

_FILES = tuple(
    f"osprey_{name}.json"
    for name in ("conversation", "detail_description", "short_form", "part_level", "lvis_positive_negative")
)
_ANNOTATIONS = ("Osprey-724K", ".", "osprey-724k/Osprey-724K")
_COCO = ("train2014", "val2014", "train2017", "val2017")
_FOLDERS = (
    *(f"coco/{folder}" for folder in _COCO),
    *(f"coco2014/{folder}" for folder in _COCO[:2]),
    *(f"coco2017/{folder}" for folder in _COCO[2:]),
    *_COCO,
    *("pascal_part/VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2010/JPEGImages", "pascal_part", "JPEGImages"),
    *(f"partImagenet/{folder}" for folder in ("train", "val", "test")),
    *(f"PartImageNet/images/{folder}" for folder in ("train", "val", "test")),
    *("coco", "images", "."),
)
_DESCRIPTION = re.compile(r"\s*<region(\d+)>\s*:\s*(.*)", re.DOTALL)
_REGION = re.compile(r"<region(\d+)>")
_SPEAKERS = ("human", "gpt")
RECORDS = "records left out: "
OTHER_SHAPE = "descriptions without <regionN>: in front"


class Osprey(Source):
    """One sample per picture, with the records of all files that are read.

    Args:
        name: the source's name.
        files: names of the files to read.
    """

    def __init__(self, name: str = "osprey", files: Sequence[str] = _FILES) -> None:
        self.name = name
        self._files = files

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Add every picture that a record names. One with an unsafe name becomes an input that `load` refuses."""
        folders = (root / name for name in _ANNOTATIONS)
        folder = next((one for one in folders if any((one / name).is_file() for name in self._files)), None)
        if folder is None:
            raise UserError(
                "no annotations of Osprey-724K",
                where=str(root),
                wanted=f"{_ANNOTATIONS[0]}/" + " or ".join(self._files),
            )
        pictures = Finder(root, _FOLDERS)
        found: Counter[str] = Counter({"records without a picture": 0, "records of another shape": 0})
        for file in self._files:
            if not (folder / file).is_file():
                continue
            for record in read_items(folder / file):
                name = record.get("file_name") if isinstance(record, dict) else None
                if not isinstance(name, str):
                    found["records of another shape"] += 1
                    continue
                path, size, _ = pictures.add(name, records)
                found["records without a picture"] += size == 0
                records.attach(path, {"file": file, "record": record})
                found[f"records of {file}"] += 1
                annotation = record.get("annotation")
                found["regions"] += len(annotation) if isinstance(annotation, list) else 0
        pictures.refuse_shared(records)
        return dict(found)

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        notes: Counter[str] = Counter()
        source = below(root, path)
        kept = []
        for part in parts:
            reason = _fault(part["record"])
            if reason:
                notes[RECORDS + reason] += 1
            else:
                kept.append(part)
        if not kept:
            faults = [
                (_record_name(part), BadInput(_fault(part["record"]), wanted="regions with a text")) for part in parts
            ]
            raise unusable("record", faults)
        picture = picture_for(source, (size for part in kept for size in _sizes(part["record"])))
        regions = Regions((picture.height, picture.width), notes)
        described = [_add_record(part["file"], part["record"], regions) for part in kept]
        return regions.sample(path, self.name, picture, {"records": described})


def _record_name(part: Mapping[str, Any]) -> str:
    number = as_id(part["record"].get("id"))
    return f"of {part['file']}" if number is None else f"{number} of {part['file']}"


def _sizes(record: dict[str, Any]) -> list[tuple[int, int] | None]:
    stated = size_of(record)
    return [stated] if stated else [rle_size(item.get("segmentation")) for item in record["annotation"]]


def _descriptions(record: dict[str, Any]) -> Any:
    return record.get("description", record.get("descriptions"))


def _fault(record: dict[str, Any]) -> str:
    """Return why a record cannot be used; empty where it can."""
    annotation = record.get("annotation")
    conversation = record.get("conversations")
    described = _descriptions(record)
    if not isinstance(annotation, list) or not all(isinstance(item, dict) for item in annotation) or not annotation:
        return "no regions"
    if not conversation and not described:
        return "no text"
    if described:
        if not isinstance(described, list) or not all(isinstance(text, str) for text in described):
            return "descriptions are not texts"
        if len(described) != len(annotation):
            return "as many descriptions as regions are wanted"
        matches = [_DESCRIPTION.match(text) for text in described]
        if all(matches) and sorted(int(m[1]) for m in matches if m) != [*range(1, len(annotation) + 1)]:
            return "descriptions of other regions than are there"
    if conversation:
        if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
            return "a conversation is not a list of turns"
        speakers = [turn.get("from") for turn in conversation]
        if speakers != [*_SPEAKERS] * (len(conversation) // 2):
            return "a conversation is not human and gpt in turn"
        values = [turn.get("value") for turn in conversation]
        if not all(isinstance(value, str) for value in values):
            return "a conversation is not a list of turns"
        numbers = [int(number) for value in values for number in _REGION.findall(value)]
        if not all(1 <= number <= len(annotation) for number in numbers):
            return "a conversation names a region that is not there"
    return ""


def _add_record(file: str, record: dict[str, Any], regions: Regions) -> dict[str, Any]:
    """Add a record's regions. Returns the record with the ids of its objects in place of their outlines."""
    annotation = record["annotation"]
    described = _descriptions(record) or []
    matches = [_DESCRIPTION.match(text) for text in described]
    if all(matches):
        texts = {int(match[1]) - 1: match[2] for match in matches if match}
    else:  # only their order assigns them to regions
        texts = {n: match[2] if match else described[n] for n, match in enumerate(matches)}
        regions.notes[OTHER_SHAPE] += matches.count(None)
    size = size_of(record)
    ids = [
        regions.add(
            [item.get("segmentation")],
            [texts[n]] if n in texts else [],
            {**{name: value for name, value in item.items() if name != "segmentation"}, "file": file},
            size,
        )
        for n, item in enumerate(annotation)
    ]
    rest = {name: value for name, value in record.items() if name != "annotation"}
    return {**rest, "file": file, "regions": ids}


OSPREY_CONVERSATION = Osprey("osprey-conversation", _FILES[:1])
OSPREY_DESCRIPTION = Osprey("osprey-description", _FILES[1:2])
