"""Referring segmentation of pictures: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, ReasonSeg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from evaluation.published.datasets import Asked, Benchmark, Item, OpenBenchmark, View
from evaluation.published.datasets.pictures import Pictures, PictureTruth
from evaluation.published.measures import Float, Int, Measure, count_pixels, ious, referring_measures
from evaluation.published.predictions import Prediction, union_of
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.ids import id_of
from pipeline.raw import RawSample
from pipeline.refused import raise_refused
from pipeline.regions import size_of
from pipeline.sources import choices_of
from pipeline.sources.reasonseg import read_texts
from shards.errors import BadInput

QUESTION = "<image>\n Please segment {} in this image."
"""Sa2VA's `RESDataset`, with the blank after the line end."""
REASONING_QUESTION = "<image>\n {} Please output segmentation mask."
"""LISA's `ValDataset`, for a sentence of ReasonSeg. Sa2VA publishes none for itself."""
NAMING_QUESTION = "<image>\n What is {} in this image? Please output segmentation mask."
"""LISA's `ValDataset`, for a phrase of ReasonSeg."""


@dataclass(frozen=True)
class Truth(PictureTruth):
    """A decoded picture with the true answers to its items."""

    masks: Mapping[str, Bool]
    """(H, W) of each item by its id, without those that cannot be measured."""
    ignored: Bool | None = None
    """(H, W), pixels that count neither for nor against an answer."""


class Referring(Pictures):
    """Texts about pictures, each with one true mask. An item's numbers are those of `count_pixels`."""

    no_target: bool = False
    """Whether some items have no object, so that N-acc and T-acc are measured."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.folders = (f"ref_seg/{name}",)

    def read(self, opened: OpenBenchmark, asked: Asked) -> Truth:
        parts = opened.records.parts(asked.path)
        options = choices_of(self.source, {"split": opened.split})
        return self.truth(self.source.load(opened.root, asked.path, options, parts), asked)

    def truth(self, sample: RawSample, asked: Asked) -> Truth:
        """Return the true answers. Items are left out where an object of theirs has no usable mask."""
        frame = sample.frames[0]
        masks = {item.id: mask for item, mask in zip(sample.objects, frame.masks, strict=True)}
        found = {}
        for item in asked.items:
            if all(number in masks for number in item.objects):
                union = np.zeros((frame.picture.height, frame.picture.width), np.bool_)
                for number in item.objects:
                    union |= np.asarray(masks[number])
                found[item.id] = union
        return Truth(np.asarray(frame.picture), found)

    def score(
        self, truth: Truth, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        height, width = truth.picture.shape[:2]
        return [
            count_pixels(union_of(of_item[item.id], height, width, where), truth.masks[item.id], truth.ignored)
            if item.id in truth.masks
            else None
            for item in items
        ]

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return referring_measures(numbers.astype(np.int64), self.no_target)

    def quality(self, numbers: Float) -> Float:
        return ious(numbers.astype(np.int64))

    def weight(self, numbers: Float) -> Float:
        return numbers[:, 1]

    def views(self, truth: Truth, item: Item, prediction: Prediction, where: str) -> list[View]:
        height, width = truth.picture.shape[:2]
        answer = union_of(prediction, height, width, where)
        return [View("picture", truth.picture, answer, truth.masks[item.id], truth.ignored)]


class Refer(Referring):
    """Every sentence of every ref, in the form `sent`. An item's id is REF:SENTENCE, with the ids of the file."""

    questions = (QUESTION,)

    def __init__(self, name: str, published: Mapping[str, int | None]) -> None:
        super().__init__(name)
        self.published = published

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        raise_refused(parts)
        for annotation in parts[1:]:
            for ref in annotation.get("refs", ()):
                for sentence in ref["sentences"]:
                    yield _item(ref["ref_id"], sentence["sent_id"], sentence["sent"], (id_of(annotation) or "",))

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        return size_of(parts[0])


class Grefer(Referring):
    """Every sentence of every ref, of one object, of several or of none. Crowds are no part of a union (ReLA)."""

    questions = (QUESTION,)
    no_target = True
    published: Mapping[str, int | None] = {"val": None, "testA": None, "testB": None}

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        raise_refused(parts)
        for part in parts:
            for one in part.get("expressions", ()):
                yield _item(one["ref_id"], one["id"], one["sent"], tuple(one["objects"]))

    def truth(self, sample: RawSample, asked: Asked) -> Truth:
        crowds = {one.id for one in sample.objects if one.more.get("iscrowd")}
        items = [replace(item, objects=tuple(n for n in item.objects if n not in crowds)) for item in asked.items]
        return super().truth(sample, replace(asked, items=tuple(items)))

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        return next((size_of(part) for part in parts if "expressions" not in part), None)


class ReasonSeg(Referring):
    """The first text of every picture, against the union of its targets. An item's id is PATH#1.

    Pixels of shapes labelled "ignore" do not count. Both as in LISA's `ValDataset` and `validate`.
    """

    questions = (REASONING_QUESTION, NAMING_QUESTION)
    published: Mapping[str, int | None] = {"val": 200, "test": 779}

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        raise_refused(parts)
        texts, is_sentence = read_texts(below(root, parts[0]["json"]))
        question = REASONING_QUESTION if is_sentence else NAMING_QUESTION
        for text in texts[:1]:
            yield Item(f"{path}#1", text, question.format(text.strip()), ("target",))

    def truth(self, sample: RawSample, asked: Asked) -> Truth:
        if not sample.objects:  # a picture without a target: nothing is right
            asked = replace(asked, items=tuple(replace(item, objects=()) for item in asked.items))
        found = super().truth(sample, asked)
        ignored = sample.more.get("ignore")
        return replace(found, ignored=coco.decode(ignored).view(bool)) if ignored else found


def _item(ref: Any, sentence: Any, text: Any, objects: tuple[str, ...]) -> Item:
    if not isinstance(text, str):
        raise BadInput("a sentence that is no text", met=f"{text!r:.40}", wanted='a text as "sent"')
    return Item(f"{ref}:{sentence}", text, QUESTION.format(text), objects)


BENCHMARKS: Mapping[str, Benchmark] = {
    "refcoco": Refer("refcoco", {"val": 10834, "testA": 5657, "testB": 5095}),
    "refcoco+": Refer("refcoco+", {"val": 10758, "testA": 5726, "testB": 4889}),
    "refcocog": Refer("refcocog", {"val": 4896, "test": 9602}),
    "grefcoco": Grefer("grefcoco"),
    "reasonseg": ReasonSeg("reasonseg"),
}
