"""Measure predictions: the numbers of each item, the table, results.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.published.datasets import AskedPicture, Item, OpenBenchmark
from evaluation.published.measures import Measure, count_pixels, ious, referring_measures, value_of
from evaluation.published.predictions import Predictions, union_of
from shards.errors import BadInput, UserError
from shards.printable import printable
from shards.tables import add_row, plain_table, table_text


@dataclass(frozen=True)
class Scored:
    """The items of a benchmark that were measured, with their numbers."""

    items: tuple[tuple[AskedPicture, Item], ...]
    """N items, in the order of the benchmark."""
    counts: NDArray[np.int64]
    """(N, 4), from `count_pixels`."""
    left_out: Counter[str]
    """Items that were not measured, by reason."""
    measures: Mapping[str, Measure]

    @property
    def values(self) -> dict[str, float]:
        """The measures by name."""
        return {name: value_of(measure) for name, measure in self.measures.items()}

    @property
    def ious(self) -> NDArray[np.float64]:
        """(N,), see `measures.ious`."""
        return ious(self.counts)


UNANSWERED = "without an answer"


def score(opened: OpenBenchmark, predictions: Predictions, where: str) -> Scored:
    """Measure all items that have an answer.

    Args:
        where: the file of predictions, for messages.

    Raises:
        UserError: a mask that is broken or of another size than its picture; no item is answered.
    """
    items = []
    counts = []
    left_out: Counter[str] = Counter()
    for asked in opened.pictures:
        answered = [item for item in asked.items if item.id in predictions.of_item]
        if len(answered) < len(asked.items):
            left_out[UNANSWERED] += len(asked.items) - len(answered)
        if not answered:
            continue
        try:
            truth = opened.read(asked)
        except BadInput as error:
            left_out[f"of pictures that cannot be read: {error.what}"] += len(answered)
            continue
        height, width = truth.picture.shape[:2]
        for item in answered:
            if item.id not in truth.masks:
                left_out["whose object has no usable mask"] += 1
                continue
            found = union_of(predictions.of_item[item.id], height, width, where)
            items.append((asked, item))
            counts.append(count_pixels(found, truth.masks[item.id], truth.ignored))
    if not items:
        met = f"{len(predictions.of_item):,} predictions, none of {opened.benchmark.name} {opened.split}"
        raise UserError("nothing to measure", where=where, met=met, do="check --on and --split")
    numbers = np.array(counts, np.int64)
    return Scored(tuple(items), numbers, left_out, referring_measures(numbers, opened.benchmark.no_target))


def counted(opened: OpenBenchmark, scored: Scored, predictions: Predictions) -> dict[str, Any]:
    """Return the counts of items: found, published, measured, and what was left out, by reason."""
    unread = Counter(f"pictures with {error.what}" for error in opened.unread.values())
    ids = {item.id for picture in opened.pictures for item in picture.items}
    return {
        "items": opened.items,
        "published_items": opened.benchmark.published[opened.split],
        "measured": len(scored.items),
        "pictures": len(opened.pictures),
        "left_out": dict(scored.left_out + unread),
        "repeated_lines": predictions.repeated,
        "unknown_lines": sum(item not in ids for item in predictions.of_item),
    }


def notes_of(counts: Mapping[str, Any], limited: bool = False) -> list[str]:
    """Return one line for each thing that a reader of the numbers has to know."""
    notes = []
    published = counts["published_items"]
    if limited:
        notes.append("only the first items were asked: these numbers stand beside no published ones")
    elif published not in (None, counts["items"]):
        notes.append(f"the split has {counts['items']:,} items here and {published:,} as published")
    notes += [f"left out: {count:,} {reason}" for reason, count in counts["left_out"].items()]
    if counts["repeated_lines"]:
        notes.append(f"{counts['repeated_lines']:,} lines answer an item again: the first answer counts")
    if counts["unknown_lines"] and not limited:
        notes.append(f"{counts['unknown_lines']:,} lines answer items that are not in this split")
    return notes


def table_of(title: str, scored: Scored, notes: list[str]) -> str:
    """Return the measures as a table, with the notes below."""
    grid = plain_table(title)
    grid.add_column("items", justify="right")
    for name in scored.measures:
        grid.add_column(name, justify="right")
    add_row(grid, (f"{len(scored.items):,}", *map(percent, scored.values.values())))
    return "\n".join([table_text(grid, 140), *map(printable, notes)])


def percent(value: float) -> str:
    """Return a measure as papers print it, in percent; "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
