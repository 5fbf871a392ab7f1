"""Benchmarks whose items are asked about pictures, or about regions of them: how a model answers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.published.datasets import Asked, Benchmark, Item, View
from evaluation.published.predictions import Prediction, encode, one_picture, question_of
from pipeline.cropped import Bool
from pipeline.resize import UInt8
from shards.errors import UserError

if TYPE_CHECKING:
    from inference.predictor import Predictor


@dataclass(frozen=True)
class PictureTruth:
    """A decoded picture."""

    picture: UInt8
    """(H, W, 3)."""


class Pictures(Benchmark):
    """Items about pictures. Those of several pictures are answered together."""

    def answer(
        self, predictor: Predictor, asked: Sequence[tuple[Asked, Any]], batch_size: int, known: set[str]
    ) -> Iterator[list[Prediction]]:
        every = [(one, truth.picture, item) for one, truth in asked for item in one.items]
        answers = predictor.segment(
            [picture for _, picture, _ in every],
            [one_picture(item.question) for _, _, item in every],
            [one.path for one, _, _ in every],
            batch_size=batch_size,
        )
        yield [
            Prediction(item.id, question_of(item.question), found.text, tuple(map(encode, found.masks)))
            for (_, _, item), found in zip(every, answers, strict=True)
        ]


@dataclass(frozen=True)
class RegionTruth(PictureTruth):
    """A decoded picture with the regions that are described."""

    regions: Mapping[str, Bool]
    """(H, W) of each item by its id, without those that have no usable mask."""


class Regions(Benchmark):
    """Descriptions of regions of pictures; masks in an answer do not count, and are not kept.

    Each question about a region is asked once, whatever the number of items that it answers. A region that is too small
    for a cell of the model's grid is not asked about.
    """

    colours = (("right", "region"),)

    def answer(
        self, predictor: Predictor, asked: Sequence[tuple[Asked, RegionTruth]], batch_size: int, known: set[str]
    ) -> Iterator[list[Prediction]]:
        first: dict[tuple[str, ...], tuple[Asked, RegionTruth, Item]] = {}
        for one, truth in asked:
            for item in one.items:
                if item.id in truth.regions and _has_cell(predictor, truth, item):
                    first.setdefault(_key(one, item), (one, truth, item))
        if not first:
            return
        described = predictor.describe(
            [truth.picture for _, truth, _ in first.values()],
            [truth.regions[item.id][None] for _, truth, item in first.values()],
            [item.question for _, _, item in first.values()],
            [one.path for one, _, _ in first.values()],
            batch_size,
        )
        answers = dict(zip(first, described, strict=True))
        yield [
            Prediction(item.id, question_of(item.question), answers[_key(one, item)], ())
            for one, _ in asked
            for item in one.items
            if _key(one, item) in answers
        ]

    def views(self, truth: RegionTruth, item: Item, prediction: Prediction, where: str) -> list[View]:
        """Return the picture with its region, in the colour of what is right."""
        region = truth.regions[item.id]
        return [View("picture", truth.picture, region, region)]


def _key(asked: Asked, item: Item) -> tuple[str, ...]:
    return (asked.path, item.question, *item.objects)


def _has_cell(predictor: Predictor, truth: RegionTruth, item: Item) -> bool:
    from inference.regions import region_cells

    try:
        region_cells(truth.picture, truth.regions[item.id][None], predictor.recipe, item.id)
    except UserError:
        return False
    return True
