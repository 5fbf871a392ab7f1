"""Conversations about videos: Chat-UniVi's and others in ShareGPT's form. `docs/datasets/videoqa.md`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from pipeline.finder import Finder, below, inside
from pipeline.pictures import read_picture
from pipeline.raw import RawFrame, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.conversations import (
    IMAGE,
    VIDEO,
    Exchange,
    each_record,
    only_file,
    other_values,
    read_exchanges,
    refuse_later_marks,
    turn,
)
from pipeline.sources.frame_choice import spread_frames
from pipeline.sources.frame_files import SUFFIXES
from pipeline.sources.video_file import open_video
from pipeline.walk import list_names
from shards.errors import BadInput

_FILE = "video_chat.json"
_FILES = tuple(f"{base}{_FILE}" for base in ("", "chat_univi/", "video_datas/chat_univi/"))
_VIDEOS = tuple(
    f"{base}{folder}"
    for folder in ("Activity_Videos", "videos")
    for base in ("", "chat_univi/", "video_datas/chat_univi/")
)
_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".ts")
OTHER_FILE = "records whose video has another suffix, or is a folder of frames"
FEWER = "videos with fewer frames than asked for"


class VideoQa(Source):
    """One sample per record. The input's path: the video's or its folder of frames', `#`, and the record's number."""

    name = "videoqa"
    choices: Mapping[str, Any] = {"split": None, "frames": 5}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        file = only_file(root, choices["split"], _FILES)
        counts = Counter(dict.fromkeys(("records", "videos that are missing"), 0))
        finder = Finder(root, (*_VIDEOS, file.parent.relative_to(root).as_posix(), "."), bare=False)
        locate = lru_cache(maxsize=1 << 16)(lambda name: _locate(root, finder, name))
        described = lru_cache(maxsize=1 << 10)(lambda video: _describe(root, video, choices["frames"]))
        for number, path, record in each_record(root, file, records, counts):
            name = record.get("video")
            if not isinstance(name, str) or not name.strip():
                refuse(records, path, BadInput("no name of a video", met=str(name)[:80], wanted='"video": PATH'))
                continue
            video = locate(name)
            if video is None:
                counts["videos that are missing"] += 1
                refuse(records, f"{name}#{number}" if inside(name) else path, finder.missing(name))
                continue
            counts[OTHER_FILE] += PurePosixPath(video).suffix.lower() != PurePosixPath(name).suffix.lower()
            size, about = described(video)
            records.add(f"{video}#{number}", size)
            records.attach(f"{video}#{number}", {"file": file.name, "record": record, "video": video, **about})
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        for part in parts:
            if "video" in part:
                yield from (f"{part['video']}/{name}" for name in part["frames"] or ())
                yield from () if part["frames"] else (part["video"],)

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        part = parts[0]
        notes: Counter[str] = Counter()
        turns = video_turns(read_exchanges(part["record"], notes))
        pictures, count = _read_frames(root, part, options["frames"])
        notes[FEWER] += len(pictures) < options["frames"]
        frames = tuple(RawFrame(name, picture, ()) for name, picture in pictures)
        about = {"name": part["record"]["video"], "frames": count}
        more = {"turns": turns, "file": part["file"], "video": about, "record": other_values(part["record"])}
        return RawSample(path, self.name, frames, (), more, +notes, segmentable=False)


def _read_frames(root: Path, part: Mapping[str, Any], k: int) -> tuple[list[tuple[str, Image.Image]], int]:
    """Return name and picture of each frame to take, and the number of frames that the video has."""
    video = below(root, part["video"])
    if part["frames"] is None:
        opened = open_video(video)
        numbers = spread_frames(opened.count, k) if opened.count else []
        names = [f"{number:05d}" for number in numbers]
        pictures = [*zip(names, opened.pictures(numbers, None), strict=True)]
        count = opened.count
    else:
        pictures = [(name, read_picture(video / name)) for name in part["frames"]]
        count = part["count"]
    if not pictures:
        raise BadInput("a video without frames", met=f"{count} frames", wanted="at least one")
    return pictures, count


def video_turns(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Return the turns of a conversation about a video: its frames stand in front, on lines of their own.

    As in Sa2VA's code `<video>` is taken out of all questions, which lose the blanks at their ends, and `<image>` out
    of the first message.
    """
    refuse_later_marks(exchanges, (IMAGE,))
    texts = ["".join(message.replace(VIDEO, "").strip() for message in one.messages) for one in exchanges]
    first = f"\n{texts[0].replace(IMAGE, '')}".rstrip()
    rest = zip(texts[1:], exchanges[1:], strict=True)
    return [turn(first, exchanges[0].answer, 0), *(turn(text, one.answer) for text, one in rest)]


def _locate(root: Path, finder: Finder, name: str) -> str | None:
    """Return the path of a video's file, also where its suffix differs, or else of its folder of frames."""
    if found := finder.locate(name):
        return found
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix}".lower() not in _SUFFIXES:
        stem = name
    places = (finder.locate(stem + other) for other in (*_SUFFIXES, ""))
    return next(filter(None, places), None)


def _describe(root: Path, video: str, frames: int) -> tuple[int, dict[str, Any]]:
    """Return bytes of a video, and the names of the frames to take where it is a folder of them."""
    path = root / video
    if not path.is_dir():
        try:
            return path.stat().st_size, {"frames": None}
        except OSError:  # a link to nothing
            return 0, {"frames": None}
    try:
        names = sorted((name for name in list_names(path) if name.lower().endswith(SUFFIXES)), key=_by_numbers)
        chosen = [names[n] for n in spread_frames(len(names), frames)] if names else []
        size = sum((path / name).stat().st_size for name in chosen if (path / name).exists())
    except OSError:
        return 0, {"frames": [], "count": 0}
    return size, {"frames": chosen, "count": len(names)}


def _by_numbers(name: str) -> list[Any]:
    """Return a key by which frame 2 is before frame 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
