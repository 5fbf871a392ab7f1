"""Conversations about pictures: LLaVA's 665k and others in ShareGPT's form. `docs/datasets/llava.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.finder import Finder, below, inside
from pipeline.pictures import read_picture
from pipeline.raw import RawFrame, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.conversations import (
    IMAGE,
    each_record,
    only_file,
    other_values,
    read_exchanges,
    refuse_later_marks,
    text_turns,
    turn,
)
from shards.errors import BadInput

_FILE = "llava_v1_5_mix665k.json"
_FILES = tuple(
    f"{base}{folder}{_FILE}"
    for base in ("", "llava_data/")
    for folder in ("LLaVA-Instruct-150K/", "LLaVA-Instruct-665K/", "")
)
_PICTURES = ("llava_images", "llava_data/llava_images", "images", ".", "coco/train2017", "train2017")
_SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".bmp")
OTHER_SUFFIX = "records whose picture has another suffix"
IN_FRONT = "pictures put in front of the first question: it has no <image>"


class Llava(Source):
    """One sample per record. The input's path: the picture's, or without one the file's; `#`; the record's number."""

    name = "llava"
    choices: Mapping[str, Any] = {"split": None}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        file = only_file(root, choices["split"], _FILES)
        names = ("records", "records of a picture", "records without a picture", "pictures that are missing")
        counts = Counter(dict.fromkeys(names, 0))
        beside = file.parent.relative_to(root).as_posix()
        finder = Finder(root, (*_PICTURES, beside, f"{beside}/images"), bare=False)
        locate = lru_cache(maxsize=1 << 16)(lambda name: _locate(finder, name))
        for number, path, record in each_record(root, file, records, counts):
            part = {"file": file.name, "record": record, "picture": None}
            try:
                name = picture_name(record)
            except BadInput as error:
                refuse(records, path, error)
                continue
            if name is None:
                counts["records without a picture"] += 1
                records.add(path, 0)
                records.attach(path, part)
                continue
            counts["records of a picture"] += 1
            picture = locate(name)
            if picture is None:
                counts["pictures that are missing"] += 1
                refuse(records, f"{name}#{number}" if inside(name) else path, finder.missing(name))
                continue
            counts[OTHER_SUFFIX] += PurePosixPath(picture).suffix.lower() != PurePosixPath(name).suffix.lower()
            records.add(f"{picture}#{number}", _size(root, picture))
            records.attach(f"{picture}#{number}", {**part, "picture": picture})
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [picture for part in parts if (picture := part.get("picture"))]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        record = parts[0]["record"]
        notes: Counter[str] = Counter()
        frames = []
        if place := parts[0]["picture"]:
            turns = picture_turns(record, notes)
            frames.append(RawFrame(PurePosixPath(place).name, read_picture(below(root, place)), ()))
        else:
            turns = text_turns(record, notes)
        more = {"turns": turns, "file": parts[0]["file"], "record": other_values(record)}
        return RawSample(path, self.name, tuple(frames), (), more, +notes, segmentable=False)


def picture_name(record: Mapping[str, Any]) -> str | None:
    """Return the picture that a record names under `image` or `images`; None where it names none.

    Raises:
        BadInput: it names several, or something else than a file.
    """
    if record.get("video"):
        raise BadInput("a record of a video", met=str(record["video"])[:80], wanted="image", do="use --source videoqa")
    stated = record.get("image") or record.get("images")
    names = stated if isinstance(stated, list) else [stated] if stated else []
    if len(names) > 1:
        raise BadInput("several pictures in a record", met=f"{len(names)}: {str(names)[:80]}", wanted="one")
    if not names:
        return None
    if not isinstance(names[0], str) or not names[0].strip():
        raise BadInput("no name of a picture", met=str(names[0])[:80], wanted="a path below the root")
    return names[0]


def picture_turns(record: Mapping[str, Any], notes: Counter[str]) -> list[dict[str, Any]]:
    """Return the turns of a record with one picture, whose place is that of `<image>` in the first message.

    The message loses the blanks at its ends, as in Sa2VA's code. Without an `<image>` the picture stands in front, on a
    line of its own.
    """
    exchanges = read_exchanges(record, notes)
    refuse_later_marks(exchanges, (IMAGE,))
    first, *more = exchanges[0].messages
    if (count := first.count(IMAGE)) > 1:
        raise BadInput("several <image> for one picture", met=str(count), wanted="one, in the first message")
    if not count:
        notes[IN_FRONT] += 1
    marked = first.strip() if count else f"{IMAGE}\n{first}"
    place = marked.index(IMAGE)
    question = "".join([marked.replace(IMAGE, ""), *more])
    return [
        turn(question, exchanges[0].answer, place),
        *(turn("".join(one.messages), one.answer) for one in exchanges[1:]),
    ]


def _locate(finder: Finder, name: str) -> str | None:
    """Return the path of a picture, also where its suffix differs: downloads of OCR-VQA keep those of their pages."""
    if found := finder.locate(name):
        return found
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix}".lower() not in _SUFFIXES:
        return None
    others = (finder.locate(stem + other) for other in _SUFFIXES)
    return next(filter(None, others), None)


def _size(root: Path, path: str) -> int:
    try:
        return (root / path).stat().st_size
    except OSError:  # a link to nothing
        return 0
