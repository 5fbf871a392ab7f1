"""Ref-SAV: expressions for masklets of SA-V's videos. `docs/datasets/sav-video.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import masks
from pipeline.annotations import read_pairs
from pipeline.faults import Fault
from pipeline.finder import Finder, below
from pipeline.ids import as_id
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources import Source
from pipeline.sources.frame_choice import choose_frames
from pipeline.sources.sav_video import TRUNCATED, annotated_sample, open_annotation
from pipeline.sources.video_file import open_video
from shards.errors import BadInput, UserError

_FILE = "Ref-SAV.json"
_VIDEOS = ("", "sam_v_full", "video_datas/sam_v_full")
_TEXT = "formated"  # this spelling is the file's


class RefSav(Source):
    """One sample per video, with all objects that have an expression. An object's id is its place in the annotation."""

    name = "ref-sav"
    choices: Mapping[str, Any] = {"frames": 5, "mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        file = next((root / base / _FILE for base in _VIDEOS if (root / base / _FILE).exists()), root / _FILE)
        bases = [base for base in _VIDEOS if (root / base / "sav_train").is_dir()] or [""]
        finder = Finder(root, bases, bare=False)
        counts: Counter[str] = Counter()
        for video_id, body in read_pairs(file):
            try:
                named = [_without_repetition(body[key]) for key in ("video_path", "anno_path")]
                paths = [finder.locate(name) or (PurePosixPath(bases[0]) / name).as_posix() for name in named]
                objects = [{**item, "id": as_id(number) or number} for number, item in body["objects"].items()]
                if not all(isinstance(item.get(_TEXT, ""), str) for item in objects):
                    raise TypeError("an expression that is no text")
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    "not the entry of a video",
                    where=str(file),
                    met=f"video {video_id!r}: {type(error).__name__} {error}",
                ) from None
            sizes = [_size(root, path) for path in paths]
            records.add(paths[0], sum(sizes))
            rest = {key: value for key, value in body.items() if key != "objects"}
            records.attach(
                paths[0], {"id": video_id, **rest, "objects": objects, "annotation": paths[1], "bytes": sizes}
            )
            counts["videos"] += 1
            counts["videos without a file"] += not sizes[0]
            counts["videos without annotation"] += not sizes[1]
            counts["objects"] += len(objects)
            counts["expressions"] += sum(_TEXT in item for item in objects)
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [path, *(part["annotation"] for part in parts)]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        if len(parts) != 1:
            raise BadInput("a video listed twice", met=f"{len(parts)} entries", wanted="one")
        body = parts[0]
        annotation = open_annotation(below(root, body["annotation"]))
        video = open_video(below(root, path))
        items = {}
        for item in body["objects"]:
            if not item["id"].isdecimal() or int(item["id"]) >= annotation.objects:
                raise BadInput("no such masklet", met=f"object {item['id']}", wanted=f"less than {annotation.objects}")
            items[int(item["id"])] = item
        usable = annotation.usable(video)

        def shown(n: int) -> set[str]:
            return {str(place) for place in items if masks.has_pixels(annotation.at(n, place))}

        def faults() -> list[Fault]:
            return [(str(place), fault) for place in items for _, fault in annotation.faults(usable, place)[:1]]

        chosen = choose_frames(usable, options["frames"], shown, {str(place) for place in items}, faults)
        objects = {
            place: RawObject(
                item["id"],
                (item[_TEXT],) if _TEXT in item else (),
                {**annotation.about(place, chosen), **{k: x for k, x in item.items() if k not in ("id", _TEXT)}},
            )
            for place, item in items.items()
        }
        described = {key: value for key, value in body.items() if key not in ("objects", "annotation", "bytes")}
        more = {"video": {**annotation.video, **described}}
        raw = annotated_sample(path, self.name, video, annotation, chosen, objects, more, options.get("mask_slack", 0))
        notes = {**raw.notes, TRUNCATED: int(annotation.differs(video))}
        return RawSample(path, self.name, raw.frames, raw.objects, raw.more, notes)


def _without_repetition(path: str) -> str:
    """Remove the folder that the file repeats: sav_000/sav_train/sav_000/x.mp4 -> sav_train/sav_000/x.mp4."""
    before, middle, after = path.rpartition("sav_train/")
    return middle + after if middle else before + after


def _size(root: Path, path: str) -> int:
    try:
        return below(root, path).stat().st_size
    except (OSError, BadInput):
        return 0
