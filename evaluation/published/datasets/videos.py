"""Referring segmentation of videos: MeViS, Ref-DAVIS17, ReVOS, Ref-SAV; and Ref-YouTube-VOS, whose truth is not public.

An item is an expression of a video: its id is VIDEO/EXPRESSION, with the names of the file of expressions. Its truth is
the union of its objects in every frame that the file lists, at the frames' own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco

from evaluation.published.datasets import Asked, Benchmark, Item, OpenBenchmark, View
from evaluation.published.measures import (
    Float,
    Int,
    Measure,
    Ratio,
    boundary_similarity,
    pixel_accuracy,
    region_similarity,
    revos_measures,
    robustness,
    typed_measures,
    video_measures,
)
from evaluation.published.predictions import Prediction, encode, frame_of, one_picture, question_of
from pipeline.annotations import read_pairs
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.ids import as_id
from pipeline.pictures import read_picture
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.resize import UInt8
from pipeline.sources import Source
from pipeline.sources.frame_files import FrameFiles
from pipeline.sources.refvos import Layout, RefVos, open_masks
from pipeline.sources.refvos_masks import MaskLists, PngMasks
from shards.errors import BadInput, UserError

if TYPE_CHECKING:
    from inference.predictor import Predictor, Tracks

QUESTION = "<image>\nPlease segment {}."
"""Sa2VA's `RefVOSDataset`."""
REASONING_QUESTION = "<image>\n {} Please respond with a segmentation mask."
"""The same, for an expression with a question mark."""
FOREGROUNDS = "mask_dict_foreground.json"
"""ReVOS' file of the pixels of all objects in each frame."""
_ANNOTATORS = 4
_NO_FOREGROUNDS = f"R is not measured: there is no {FOREGROUNDS}"


class VideoFrames(Sequence[UInt8]):
    """Frames of a video, (H, W, 3) uint8 RGB. Each is read when it is indexed; the last two are kept.

    Raises:
        BadInput: a frame that cannot be read.
    """

    def __init__(self, names: Sequence[str], files: Sequence[Path], size: Callable[[int], tuple[int, int] | None]):
        """Keep the files; `size` returns (H, W) of a frame's masks, None where nothing states it."""
        self.names = names
        self._read = lru_cache(maxsize=2)(lambda n: np.asarray(read_picture(files[n], size(n))))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return self._read(range(len(self))[index])


@dataclass(frozen=True)
class VideoTruth:
    """A video and the masks of its objects. Both are read frame by frame, when they are needed."""

    frames: VideoFrames
    masks: PngMasks | MaskLists
    objects: bool
    """Whether any expression of the video is known to have an object."""
    foregrounds: Sequence[Any] = ()
    """Run lengths of all objects of each frame; () where none are stated."""

    def size(self, n: int) -> tuple[int, int]:
        """Return (H, W) of a frame: of its masks, or of its picture where the video has no object."""
        if self.objects:
            if not self.masks.has(n):
                raise BadInput("no mask of a frame", met=self.frames.names[n])
            return self.masks.size(n)
        height, width = self.frames[n].shape[:2]
        return height, width

    def union(self, n: int, objects: Sequence[str], size: tuple[int, int]) -> Bool:
        """Return the union of objects in a frame; raises `BadInput` where one has no usable mask."""
        union = np.zeros(size, np.bool_)
        for number in objects:
            union |= self.masks.mask(n, number, *size)
        return union

    def foreground(self, n: int, size: tuple[int, int]) -> Bool:
        """Return the pixels of all objects of a frame that the dataset knows."""
        stated = self.foregrounds[n]
        union = np.zeros(size, np.bool_)
        for one in stated if isinstance(stated, list) else [stated]:
            if one:
                decoded = coco.decode(one)
                if decoded.shape != size:
                    raise BadInput("foreground of another size", met=str(decoded.shape), wanted=str(size))
                union |= decoded.view(np.bool_)
        return union


class Videos(Benchmark):
    """Expressions of videos, measured by J and F. An item's numbers are the means of both over the frames.

    Args:
        name: the source's name.
        published: published number of expressions of each split.
        folders: where Sa2VA's data holds the dataset.
        hidden: splits whose truth is not public.
        source: reads the dataset; None: the registered source of this name.
    """

    questions = (QUESTION, REASONING_QUESTION)
    units = "videos"
    batched = False
    quality_name = "J&F"

    def __init__(
        self,
        name: str,
        published: Mapping[str, int | None],
        folders: Sequence[str],
        hidden: frozenset[str] = frozenset(),
        source: Source | None = None,
    ) -> None:
        super().__init__(name)
        self.published = published
        self.folders = folders
        self.hidden = hidden
        self._source = source

    @property
    def source(self) -> Source:
        return self._source or super().source

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        raise_refused(parts)
        video = parts[0]["video"]["id"]
        for one in parts[0]["expressions"]:
            question = REASONING_QUESTION if "?" in one["text"] else QUESTION
            kind = self.kind(one, parts[0]["expressions"])
            name = f"{video}/{one['id']}"
            yield Item(name, one["text"], question.format(one["text"]), tuple(one["objects"]), kind)

    def kind(self, expression: Mapping[str, Any], expressions: Sequence[Mapping[str, Any]]) -> int:
        """Return the part of the dataset that an expression belongs to, among all of its video."""
        return 0

    def read(self, opened: OpenBenchmark, asked: Asked) -> VideoTruth:
        video, *parts = opened.records.parts(asked.path)
        files = FrameFiles(below(opened.root, asked.path))
        found = []
        for name in video["frames"]:
            below(opened.root, name)
            file = files.named(name)
            if file is None:
                raise BadInput("a frame without a picture", where=asked.path, met=name)
            found.append(file)
        if not found:
            raise BadInput("no frames", where=asked.path)
        masks = open_masks(opened.root, video, parts)
        has_objects = opened.split not in self.hidden and any(one["objects"] for one in video["expressions"])
        size = (lambda n: masks.size(n)) if has_objects else lambda n: None
        foregrounds = self.foregrounds(opened, video["video"]["id"], len(found))
        return VideoTruth(VideoFrames(video["frames"], found, size), masks, has_objects, foregrounds)

    def foregrounds(self, opened: OpenBenchmark, video: str, frames: int) -> Sequence[Any]:
        """Return the run lengths of all objects of each frame of a video; () where they are not needed."""
        return ()

    def settings(self, predictor: Predictor) -> dict[str, str]:
        number = "" if predictor.frames_seen is None else f", {predictor.frames_seen} of them"
        return {"video_frames": f"{predictor.video_frames}{number}", "propagate": predictor.propagate}

    def answer(
        self, predictor: Predictor, asked: Sequence[tuple[Asked, VideoTruth]], batch_size: int, known: set[str]
    ) -> Iterator[list[Prediction]]:
        """Ask each expression by itself; those of a video share the passes over its frames.

        The masks of the first `[SEG]` count. All expressions of a video are asked again where one has no answer, so
        that batches, and with them the last bits of answers, are the same after a kill.
        """
        for one, truth in asked:
            if all(item.id in known for item in one.items):
                continue
            questions = [one_picture(item.question) for item in one.items]
            for tracks in predictor.track_many(truth.frames, questions, one.path, batch_size, first_only=True):
                items = [one.items[n] for n in tracks.questions]
                if all(item.id in known for item in items):
                    continue
                masks = encoded_tracks(tracks)
                answers = zip(items, tracks.texts, masks, strict=True)
                yield [Prediction(item.id, question_of(item.question), text, found) for item, text, found in answers]

    def score(
        self, truth: VideoTruth, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        frames = len(truth.frames)
        found: dict[str, list[tuple[float, ...]]] = {item.id: [] for item in items}
        for n in range(frames):
            size = truth.size(n)
            for item in items:
                if item.id not in found:
                    continue
                answer = frame_of(of_item[item.id], n, frames, *size, where)
                try:
                    union = truth.union(n, item.objects, size)
                except BadInput:
                    del found[item.id]
                    continue
                found[item.id].append(self.numbers_of(answer, union, truth, n))
        means = {key: tuple(np.mean(values, axis=0).tolist()) for key, values in found.items()}
        return [means.get(item.id) for item in items]

    def numbers_of(self, answer: Bool, union: Bool, truth: VideoTruth, n: int) -> tuple[float, ...]:
        """Return the numbers of one frame."""
        one, other = answer[None], union[None]
        return float(region_similarity(one, other)[0]), float(boundary_similarity(one, other)[0])

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return video_measures(numbers[:, 0], numbers[:, 1])

    def quality(self, numbers: Float) -> Float:
        return numbers[:, :2].mean(axis=1)

    def views(self, truth: VideoTruth, item: Item, prediction: Prediction, where: str) -> list[View]:
        """Return the frames after a third and two thirds of the video."""
        frames = len(truth.frames)
        shown = []
        for n in dict.fromkeys((frames // 3, 2 * frames // 3)):
            size = truth.size(n)
            answer = frame_of(prediction, n, frames, *size, where)
            label = f"frame {truth.frames.names[n]}"
            shown.append(View(label, truth.frames[n], answer, truth.union(n, item.objects, size)))
        return shown


class Davis(Videos):
    """Ref-DAVIS17: expressions of four annotators; a measure is the mean of the four."""

    def kind(self, expression: Mapping[str, Any], expressions: Sequence[Mapping[str, Any]]) -> int:
        """Return the annotator: those of an object's expressions alternate, in the order of their numbers."""
        own = [one["id"] for one in expressions if one["objects"] == expression["objects"]]
        return sorted(own, key=lambda name: (len(name), name)).index(expression["id"]) % _ANNOTATORS

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return by_annotator(video_measures(numbers[:, 0], numbers[:, 1]), kinds)


class Typed(Videos):
    """Videos whose expressions are of several types, `type_id`. Numbers: J, F and A."""

    types: Sequence[str] = ("0", "1")

    def kind(self, expression: Mapping[str, Any], expressions: Sequence[Mapping[str, Any]]) -> int:
        kind = as_id(expression.get("type_id"))
        if kind is None or kind not in self.types:
            met = f"type_id {expression.get('type_id')!r:.40}"
            raise BadInput("type of an expression", met=met, wanted=" or ".join(self.types))
        return int(kind)

    def numbers_of(self, answer: Bool, union: Bool, truth: VideoTruth, n: int) -> tuple[float, ...]:
        return *super().numbers_of(answer, union, truth, n), float(pixel_accuracy(answer[None], union[None])[0])


class RefSav(Typed):
    """Ref-SAV: long and short expressions."""

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return typed_measures(dict(zip("JFA", numbers.T, strict=True)), kinds, ("long", "short"))


class Revos(Typed):
    """ReVOS: referring and reasoning expressions, and such of no object. Numbers: also R (NaN without its file)."""

    types = ("0", "1", "2")

    def find(self, root: Path, split: str, records: RecordsWriter) -> list[str]:
        super().find(root, split, records)
        files = (root / base / FOREGROUNDS for base in ("", "ReVOS", "revos"))
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            return [_NO_FOREGROUNDS]
        for video, body in read_pairs(file):
            if not isinstance(body, dict) or not isinstance(body.get("masks_rle"), list):
                raise UserError("not the foreground of a video", where=str(file), met=video, wanted="masks_rle, a list")
            records.attach(_foreground_key(video), body["masks_rle"])
        return []

    def foregrounds(self, opened: OpenBenchmark, video: str, frames: int) -> Sequence[Any]:
        if _NO_FOREGROUNDS in opened.notes:
            return ()
        (found,) = opened.records.parts(_foreground_key(video)) or [[]]
        if len(found) != frames:
            raise BadInput("foregrounds do not fit the frames", where=video, met=f"{len(found)}", wanted=f"{frames}")
        return found

    def numbers_of(self, answer: Bool, union: Bool, truth: VideoTruth, n: int) -> tuple[float, ...]:
        r = np.nan
        if truth.foregrounds:
            foreground = truth.foreground(n, (answer.shape[0], answer.shape[1]))
            r = float(robustness(answer[None], union[None], foreground[None])[0])
        return *super().numbers_of(answer, union, truth, n), r

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return revos_measures(dict(zip("JFAR", numbers.T, strict=True)), kinds)


def by_annotator(measures: Mapping[str, tuple[Ratio]], kinds: Int) -> dict[str, Measure]:
    """Return each measure as the mean of its values for each annotator that has an item."""
    found: dict[str, Measure] = {}
    for name, (whole,) in measures.items():
        among = [(kinds == kind).astype(np.float64) for kind in np.unique(kinds)]
        found[name] = [Ratio(whole.numerator * kept, whole.denominator * kept) for kept in among]
    return found


def encoded_tracks(tracks: Tracks) -> list[tuple[dict[str, Any], ...]]:
    """Return the masks of each question's first object as run lengths, one for each frame; () for no object."""
    masks: list[list[dict[str, Any]]] = [[] for _ in tracks.objects]
    if any(tracks.objects):
        for of_frame in tracks.masks:
            for found, kept in zip(of_frame, masks, strict=True):
                kept += map(encode, found[:1])
    return [*map(tuple, masks)]


def _foreground_key(video: str) -> str:
    return f"foreground of {video}"


def _ref_sav(root: Path, split: str) -> Layout:
    """Find the files that Sa2VA publishes for measuring Ref-SAV: those of MeViS, in other places."""
    files = {name: root / name for name in (f"meta_expressions_{split}.json", "mask_dict.json")}
    for file in files.values():
        if not file.is_file():
            raise UserError("no such file", where=str(file), do="see docs/BENCHMARKS.md for the layout")
    expressions, masks = files.values()
    return Layout(expressions, read_pairs(expressions, "videos"), "videos", masks=masks)


BENCHMARKS: Mapping[str, Videos] = {
    "mevis": Videos(
        "mevis",
        {"valid_u": 793, "valid": None, "test": None},
        ("video_datas/mevis",),
        hidden=frozenset(("valid", "test")),
    ),
    "ref-davis": Davis("ref-davis", {"valid": None}, ("video_datas/davis17",)),
    "revos": Revos("revos", {"valid": None}, ("video_datas/revos",)),
    "ref-sav": RefSav("ref-sav", {"valid": None}, ("ref_sav_eval",), source=RefVos("ref-sav", _ref_sav, "anno_id")),
    "ref-youtube-vos": Videos("ref-youtube-vos", {"valid": None}, ("video_datas/rvos",), hidden=frozenset(("valid",))),
}
