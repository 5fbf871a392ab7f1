"""SA-V as released: frames of a video, and one masklet's masks in them. `docs/datasets/sav-video.md`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import masks
from pipeline.annotations import read_json
from pipeline.cropped import Mask
from pipeline.faults import Fault, unusable
from pipeline.finder import below
from pipeline.fit import note_size_differences
from pipeline.input_files import input_state, open_input
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.regions import rle_size
from pipeline.sources import Source
from pipeline.sources.frame_choice import choose_frames
from pipeline.sources.objects import Candidate, sample_of
from pipeline.sources.video_file import VideoFile, open_video
from pipeline.walk import walk
from shards.errors import BadInput, DroppedInput, UserError

STEP = 4  # frames of the video from one annotated frame to the next
FRAMES_A_SECOND = 24
CLOSE = "pairs of frames less than a second apart"
TRUNCATED = "videos and annotations that differ by one annotated frame"
BROKEN = "annotated frames passed over for broken run lengths"
KINDS = ("manual", "auto")
_NUMBER = re.compile(rb'"masklet_num"\s*:\s*(\d+)')
_ANNOTATION = re.compile(r"(.+)_(manual|auto)\.json")
_INPUT = re.compile(r"(.+)\.mp4#(manual|auto)-(\d+)")
_TAIL = 1 << 12
_DIGITS = 3  # of a masklet count that is read without parsing the masks: released files have fewer than 1,000
_OTHER_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}


class SavVideo(Source):
    """One sample per masklet of a video. The input's path: the video's, `#`, kind and place of the masklet."""

    name = "sav-video"
    choices: Mapping[str, Any] = {"split": "all", "frames": 2, "mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Add the masklets of `split`: manual, auto, or all for both."""
        if choices["split"] not in ("all", *KINDS):
            raise UserError("no such split", where="--split", met=str(choices["split"]), wanted="manual, auto or all")
        kinds = KINDS if choices["split"] == "all" else (choices["split"],)
        counts: Counter[str] = Counter()
        sizes = dict(walk(root, _is_named, counts, records, _resembles))
        videos = [path for path in sizes if path.endswith(".mp4")]
        counts["videos"] = len(videos)
        counts["annotation files without a video"] = sum(
            match is not None and f"{match[1]}.mp4" not in sizes for match in map(_ANNOTATION.fullmatch, sizes)
        )
        for video, kind in itertools.product(videos, kinds):
            file = f"{video.removesuffix('.mp4')}_{kind}.json"
            if file not in sizes:
                counts[f"videos without {kind} annotation"] += 1
                continue
            masklets = _add_masklets(root, (video, file), (sizes[video], sizes[file]), kind, records)
            counts[f"{kind} masklets"] += masklets
            counts["annotation files without a masklet"] += masklets == 0
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        match = _INPUT.fullmatch(path)
        return [f"{match[1]}.mp4", f"{match[1]}_{match[2]}.json"] if match else []

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        match = _INPUT.fullmatch(path)
        if match is None:
            raise BadInput("no masklet", met=path, wanted="VIDEO.mp4#manual-N or VIDEO.mp4#auto-N")
        annotation = open_annotation(below(root, f"{match[1]}_{match[2]}.json"))
        video = open_video(below(root, f"{match[1]}.mp4"))
        place = int(match[3])
        k = options["frames"]
        if place >= annotation.objects:
            raise BadInput("no such masklet", met=f"{annotation.objects} masklets", wanted=f"number {place}")
        usable = annotation.usable(video)
        shown = [n for n in range(usable) if masks.has_pixels(annotation.at(n, place))]
        broken = annotation.faults(usable, place)
        if len(shown) < min(k, 2) and broken:
            raise unusable("mask", broken)
        if len(shown) < min(k, 2):
            raise DroppedInput(
                "visible in too few frames",
                met=f"visible in {len(shown)} of {usable} annotated frames",
                wanted=f"at least {min(k, 2)}",
            )
        number = str(place)
        in_sight = {*shown}
        chosen = choose_frames(usable, k, lambda n: {number} if n in in_sight else set(), {number})
        item = RawObject(number, (), annotation.about(place, chosen))
        more = {"video": annotation.video, "kind": match[2]}
        slack = options.get("mask_slack", 0)
        raw = annotated_sample(path, self.name, video, annotation, chosen, {place: item}, more, slack)
        close = len(chosen) == 2 and (chosen[1] - chosen[0]) * STEP < FRAMES_A_SECOND
        notes = {**raw.notes, CLOSE: int(close), TRUNCATED: int(annotation.differs(video)), BROKEN: len(broken)}
        return RawSample(path, self.name, raw.frames, raw.objects, raw.more, notes)


def _is_named(name: str) -> bool:
    return name.endswith(".mp4") or _ANNOTATION.fullmatch(name) is not None


def _resembles(name: str) -> bool:
    return PurePosixPath(name.lower()).suffix in _OTHER_VIDEOS or ".mp4." in name.lower()


def _add_masklets(root: Path, files: tuple[str, str], sizes: tuple[int, int], kind: str, records: RecordsWriter) -> int:
    """Add the masklets of a video and its annotation as inputs, and return their number."""
    video, annotation = files
    try:
        count = _masklets(root / annotation, sizes[1])
    except BadInput:
        count = 1  # it goes to the ledger when its turn comes
    for place in range(count):
        path = f"{video}#{kind}-{place}"
        records.add(path, sum(sizes) // count)
        records.attach(path, {"bytes": sizes})
    return count


def _masklets(file: Path, size: int) -> int:
    """Return the number of masklets that an annotation states; raises `BadInput` where it cannot be read."""
    with open_input(file) as opened:
        opened.seek(max(0, size - _TAIL))
        match = _NUMBER.search(opened.read())  # the last key: the file need not be parsed for it
    believed = match and len(match[1]) <= _DIGITS and int(match[1])
    return believed or open_annotation(file).objects


class Annotation:
    """The content of one `_manual.json` or `_auto.json`."""

    def __init__(self, file: Path) -> None:
        try:
            body = read_json(file)
            self._masklet: list[list[Any]] = body["masklet"]
            self.objects: int = body["masklet_num"]
            lengths = {len(row) for row in self._masklet}
            if type(self.objects) is not int:
                raise TypeError(f"masklet_num {str(self.objects)[:40]}")
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                "not SA-V's annotation",
                where=str(file),
                met=f"{type(error).__name__} {error}",
                wanted="masklet, masklet_num",
            ) from None
        if (lengths or {0}) != {self.objects}:
            raise BadInput(
                "masklets of several lengths",
                where=str(file),
                met=f"{sorted(lengths)} masks a frame",
                wanted=f"{self.objects}",
            )
        self._lists = {key: value for key, value in body.items() if key.startswith("masklet_") and key != "masklet_num"}
        self.video = {key: value for key, value in body.items() if not key.startswith("masklet")}

    def at(self, n: int, place: int) -> Any:
        """Return the run lengths of the masklet at `place` in annotated frame `n`."""
        return self._masklet[n][place]

    def faults(self, usable: int, place: int) -> list[Fault]:
        """Return which of the first `usable` annotated frames have broken run lengths for a masklet, and why."""
        found = []
        for n in range(usable):
            run_lengths = self.at(n, place)
            if run_lengths and not masks.has_pixels(run_lengths):
                fault = masks.run_length_fault(run_lengths, *(rle_size(run_lengths) or (0, 0)))
                found += [(f"of annotated frame {n}", fault)] if fault else []
        return found

    def size(self, n: int, place: int) -> tuple[int, int]:
        run_lengths = self.at(n, place)
        size = run_lengths.get("size") if isinstance(run_lengths, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
            raise BadInput("broken run lengths", met=str(run_lengths)[:60], wanted="size and counts")
        return size[0], size[1]

    def usable(self, video: VideoFile) -> int:
        """Return the number of annotated frames in both; raises `BadInput` where they differ by more than one."""
        expected = -(-video.count // STEP)
        if abs(expected - len(self._masklet)) > 1:
            raise BadInput(
                "video and annotation differ in length",
                met=f"{len(self._masklet)} annotated frames, {video.count} frames",
                wanted=f"{expected} annotated frames",
            )
        return min(expected, len(self._masklet))

    def differs(self, video: VideoFile) -> bool:
        return -(-video.count // STEP) != len(self._masklet)

    def about(self, place: int, chosen: Sequence[int]) -> dict[str, Any]:
        """Return the file's values for one masklet; of values per frame, those of the chosen frames."""
        stated: dict[str, Any] = {}
        for key, values in self._lists.items():
            if isinstance(values, list) and values and isinstance(values[0], list):  # frames x objects
                stated[key] = [values[n][place] for n in chosen if n < len(values) and place < len(values[n])]
            elif isinstance(values, list) and place < len(values):
                stated[key] = values[place]
        return stated


@lru_cache(maxsize=2)
def _kept(file: Path, changed: int, size: int) -> Annotation:
    return Annotation(file)


def open_annotation(file: Path) -> Annotation:
    """Return the annotation in `file`. The last two are cached, as videos are."""
    state = input_state(file)
    return _kept(file, state.st_mtime_ns, state.st_size)


def annotated_sample(
    path: str,
    kind: str,
    video: VideoFile,
    annotation: Annotation,
    chosen: Sequence[int],
    items: Mapping[int, RawObject],
    more: Mapping[str, Any],
    slack: int,
) -> RawSample:
    """Return a sample of the annotated frames `chosen` with the masklets at the places in `items`.

    `slack`: pixels by which each side of a frame may differ from the masks'.
    """
    size = annotation.size(chosen[0], next(iter(items)))
    numbers = [n * STEP for n in chosen]
    pictures = zip([f"{number:05d}" for number in numbers], video.pictures(numbers, size, slack), strict=True)

    def mask(n: int, place: int) -> Mask:
        return masks.read_coco(annotation.at(n, place), *size)

    candidates = [Candidate(item, [partial(mask, n, place) for n in chosen]) for place, item in items.items()]
    return note_size_differences(sample_of(path, kind, [*pictures], candidates, {**more}))
