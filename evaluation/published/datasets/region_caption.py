"""Captions of regions: RefCOCOg's objects, described in words and measured against the sentences that refer to them.

An item is a sentence, as in the file that Sa2VA measures on: an object with several sentences counts once for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.published.captions import NOT_MEASURED, caption_measures, missing
from evaluation.published.datasets import Asked, Item, OpenBenchmark
from evaluation.published.datasets.pictures import Regions, RegionTruth
from evaluation.published.measures import Float, Int, Measure
from evaluation.published.predictions import Prediction
from pipeline.ids import id_of
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.regions import size_of
from pipeline.sources import Source, choices_of, source_named
from shards.errors import BadInput

QUESTION = "<image>\nPlease give me a short description of the region in the picture marked by region1."
"""Sa2VA's `region_cap_refcocog_eval.py`."""
_REMOVED = (
    *("<s>", "\n", "region1", "Region1", "The region marked by", "The region marked as", "The region marked"),
    *("is", "shows", ":"),
)
"""Texts that the same script removes from an answer, in this order and wherever it stands: "is" also within a word."""
_MARK = re.compile(r"<.*?>|\[SEG\]")
_WORD = re.compile(r"\w+")


class RegionCaption(Regions):
    """Captions of RefCOCOg's objects. An item's number is the share of words that its caption and sentence share."""

    questions = (QUESTION,)
    published: Mapping[str, int | None] = {"val": 4896}
    folders = ("ref_seg/refcocog",)
    quality_name = "words shared"

    def __init__(self) -> None:
        super().__init__("region-caption")

    @property
    def source(self) -> Source:
        return source_named("refcocog")

    def find(self, root: Path, split: str, records: RecordsWriter) -> list[str]:
        super().find(root, split, records)
        return [NOT_MEASURED + missing()] if missing() else []

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        raise_refused(parts)
        for annotation in parts[1:]:
            for ref in annotation.get("refs", ()):
                for sentence in ref["sentences"]:
                    if not isinstance(sentence["sent"], str):
                        raise BadInput("a sentence that is no text", met=f"{sentence['sent']!r:.40}")
                    name = f"{ref['ref_id']}:{sentence['sent_id']}"
                    yield Item(name, sentence["sent"], QUESTION, (id_of(annotation) or "",))

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        return size_of(parts[0])

    def read(self, opened: OpenBenchmark, asked: Asked) -> RegionTruth:
        parts = opened.records.parts(asked.path)
        options = choices_of(self.source, {"split": opened.split})
        sample = self.source.load(opened.root, asked.path, options, parts)
        frame = sample.frames[0]
        masks = {one.id: np.asarray(mask) for one, mask in zip(sample.objects, frame.masks, strict=True)}
        found = {item.id: masks[item.objects[0]] for item in asked.items if item.objects[0] in masks}
        return RegionTruth(np.asarray(frame.picture), found)

    def score(
        self, truth: RegionTruth, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        return [
            (words_shared(caption_of(of_item[item.id].answer), item.phrase),) if item.id in truth.regions else None
            for item in items
        ]

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return {}

    def whole(
        self, opened: OpenBenchmark, items: Sequence[tuple[Asked, Item]], of_item: Mapping[str, Prediction]
    ) -> Mapping[str, Measure]:
        """Return METEOR and CIDEr, where they can be measured."""
        if missing():
            return {}
        captions = [caption_of(of_item[item.id].answer) for _, item in items]
        return caption_measures(captions, [[item.phrase] for _, item in items])

    def quality(self, numbers: Float) -> Float:
        return numbers[:, 0]


def caption_of(answer: str) -> str:
    """Return an answer as Sa2VA's script measures it (`region_cap_refcocog_eval.py`): without marks and `_REMOVED`."""
    for text in _REMOVED:
        answer = answer.replace(text, "")
    return " ".join(_MARK.sub("", answer).split()).strip("'").strip()


def words_shared(text: str, other: str) -> float:
    """Return the F measure of the different words of two texts, 0 where one has none. It ranks items on the page."""
    words, others = (set(_WORD.findall(one.lower())) for one in (text, other))
    return 2 * len(words & others) / (len(words) + len(others)) if words and others else 0.0


BENCHMARKS: Mapping[str, RegionCaption] = {"region-caption": RegionCaption()}
