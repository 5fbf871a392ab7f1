"""Sa2VA's layout for fine-tuning: `annotations.json`, texts with the polygons of each, beside `images/`.

`docs/datasets/folder.md` is the schema.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.annotations import read_items
from pipeline.finder import Finder, below
from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from pipeline.regions import Regions, picture_for, rle_size
from shards.errors import BadInput, UserError

FILE = "annotations.json"
_FOLDERS = ("images", "")
_KEYS = {"image", "mask", "text"}
_PROBES = 16  # records that show whether a file has this form
_WANTED = '{"image": NAME, "mask": [[polygon, ...] for each text], "text": [...]}'


def is_annotations_json(root: Path) -> bool:
    """Whether `annotations.json` is there and one of its first records has `image`, `mask` and `text`."""
    try:
        first = [*islice(read_items(root / FILE), _PROBES)] if (root / FILE).exists() else []
    except UserError:
        return False
    return any(isinstance(record, dict) and record.keys() >= _KEYS for record in first)


def find_annotations_json(root: Path, records: RecordsWriter) -> dict[str, int]:
    """Add the picture of every record. Several records of one picture are one input.

    Raises:
        UserError: the file is broken, or holds no list.
    """
    counts: Counter[str] = Counter()
    finder = Finder(root, _FOLDERS)
    for number, record in enumerate(read_items(root / FILE)):
        counts["records"] += 1
        name = record.get("image") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            error = BadInput("not a sample", met=str(record)[:60], wanted=_WANTED)
            refuse(records, f"{FILE}#record-{number}", error)
            counts["records that are no sample"] += 1
            continue
        path, _, _ = finder.add(name, records)
        records.attach(path, {"number": number, "record": record})
        counts["texts"] += len(record["text"]) if isinstance(record.get("text"), list) else 0
    finder.refuse_shared(records)
    if not counts["records"]:
        raise UserError("no records", where=str(root / FILE), wanted=f"a list of {_WANTED}")
    return dict(counts)


def load_annotations_json(root: Path, path: str, parts: Sequence[Mapping[str, Any]]) -> RawSample:
    """Return the sample of a picture: the masks of all its records, each with its texts.

    Polygons belong to the picture as it is stored, whatever its EXIF orientation is.

    Raises:
        BadInput: a record of another form; no mask can be used; the picture is missing or cannot be read.
    """
    described = [(part["number"], *pair) for part in parts for pair in _described(part["record"])]
    picture = picture_for(below(root, path), [rle_size(mask) for _, mask, _ in described])
    regions = Regions((picture.height, picture.width), Counter())
    for number, mask, text in described:
        regions.add([mask], [text], {"record": number})
    rest = [{key: value for key, value in part["record"].items() if key not in _KEYS} for part in parts]
    return regions.sample(path, "folder", picture, {"source_json": rest} if any(rest) else {})


def _described(record: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Return the mask and the text of each object; raises `BadInput` where it is unknown which belongs to which."""
    masks = record.get("mask")
    texts = record.get("text")
    if not isinstance(masks, list) or not isinstance(texts, list):
        raise BadInput("not a sample", met=f"mask {str(masks)[:30]}, text {str(texts)[:30]}", wanted=_WANTED)
    if len(masks) != len(texts):
        raise BadInput(
            "not as many masks as texts", met=f"{len(masks)} and {len(texts)}", wanted="a mask for each text"
        )
    if broken := [text for text in texts if not isinstance(text, str)]:
        raise BadInput("a text that is none", met=str(broken[0])[:60], wanted="a text")
    return [*zip(masks, texts, strict=True)]
