"""Measure predictions: the numbers of each item, the table, results.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluation.published.datasets import Asked, Benchmark, Item, OpenBenchmark
from evaluation.published.measures import Bool, Float, Measure, value_of
from evaluation.published.predictions import Predictions
from shards.errors import BadInput, UserError
from shards.printable import printable
from shards.tables import add_row, plain_table, table_text


@dataclass(frozen=True)
class Scored:
    """The items of a benchmark that were measured, with their numbers."""

    benchmark: Benchmark
    items: tuple[tuple[Asked, Item], ...]
    """N items, in the order of the benchmark."""
    numbers: Float
    """(N, K), from the benchmark's `score`; K is 0 where nothing can be measured."""
    left_out: Counter[str]
    """Items that were not measured, by reason."""
    whole: Mapping[str, Measure] = field(default_factory=dict)
    """Measures that need all items at once."""

    @property
    def measures(self) -> dict[str, Measure]:
        """The measures by name; {} where nothing can be measured."""
        if not self.numbers.shape[1]:
            return {}
        kinds = np.array([item.kind for _, item in self.items])
        return {**self.benchmark.measures(self.numbers, kinds), **self.whole}

    @property
    def values(self) -> dict[str, float]:
        """The values of the measures by name."""
        return {name: value_of(measure) for name, measure in self.measures.items()}

    @property
    def quality(self) -> Float:
        """(N,), 0 to 1, by which items are ranked."""
        return self.benchmark.quality(self.numbers)

    @property
    def weight(self) -> Float:
        """(N,), which ranks items of one quality, the largest first."""
        return self.benchmark.weight(self.numbers)

    def among(self, kept: Bool) -> Scored:
        """Return the same with only the items that are `kept` (N,), without measures that need all items at once."""
        items = tuple(pair for pair, keep in zip(self.items, kept, strict=True) if keep)
        return replace(self, items=items, numbers=self.numbers[kept], whole={})


UNANSWERED = "without an answer"
_MOST_COLUMNS = 11  # more measures are shown one in a line


def score(opened: OpenBenchmark, predictions: Predictions, where: str) -> Scored:
    """Measure all items that have an answer; what needs all items at once is added by `with_whole`.

    Args:
        where: the file of predictions, for messages.

    Raises:
        UserError: a split without public truth; a mask that is broken or of another size than its picture; no item is
            answered.
    """
    if opened.split in opened.benchmark.hidden:
        met = f"{opened.benchmark.name} {opened.split}"
        raise UserError("the truth of this split is not public", where=where, met=met)
    items: list[tuple[Asked, Item]] = []
    numbers = []
    left_out: Counter[str] = Counter()
    benchmark = opened.benchmark
    for asked in opened.asked:
        answered = [item for item in asked.items if item.id in predictions.of_item]
        if len(answered) < len(asked.items):
            left_out[UNANSWERED] += len(asked.items) - len(answered)
        if not answered:
            continue
        try:
            found = benchmark.score(opened.read(asked), answered, predictions.of_item, where)
        except BadInput as error:
            left_out[f"of {benchmark.units} that cannot be read: {error.what}"] += len(answered)
            continue
        for item, of_item in zip(answered, found, strict=True):
            if of_item is None:
                left_out[benchmark.no_numbers] += 1
            else:
                items.append((asked, item))
                numbers.append(of_item)
    if not items:
        met = f"{len(predictions.of_item):,} predictions, none of {benchmark.name} {opened.split}"
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items() if reason != UNANSWERED)
        met = f"left out: {reasons}" if reasons else met
        raise UserError("nothing to measure", where=where, met=met, do="check --on and --split")
    return Scored(benchmark, tuple(items), np.array(numbers, np.float64), left_out)


def with_whole(scored: Scored, opened: OpenBenchmark, predictions: Predictions) -> Scored:
    """Return the same with the measures that need all items at once."""
    return replace(scored, whole=scored.benchmark.whole(opened, scored.items, predictions.of_item))


def counted(opened: OpenBenchmark, scored: Scored, predictions: Predictions) -> dict[str, Any]:
    """Return the counts of items: found, published, measured, and what was left out, by reason."""
    unread = Counter(f"{opened.benchmark.units} with {error.what}" for error in opened.unread.values())
    ids = {item.id for asked in opened.asked for item in asked.items}
    return {
        "items": opened.items,
        "published_items": opened.benchmark.published[opened.split],
        "measured": len(scored.items),
        opened.benchmark.units: len(opened.asked),
        "left_out": dict(scored.left_out + unread),
        "repeated_lines": predictions.repeated,
        "unknown_lines": sum(item not in ids for item in predictions.of_item),
    }


def notes_of(counts: Mapping[str, Any], limited: bool = False, found: Sequence[str] = ()) -> list[str]:
    """Return one line for each thing that a reader of the numbers has to know.

    Args:
        counts: from `counted`.
        limited: whether only the first items were asked.
        found: notes of the data.
    """
    notes = [*found]
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
    """Return the measures as a table, with the notes below; one in a line where they are many."""
    cells = {"items": f"{len(scored.items):,}"} | {name: percent(value) for name, value in scored.values.items()}
    grid = plain_table("")  # the title stands above: a table may be too narrow for it
    if len(cells) > _MOST_COLUMNS:
        grid.add_column("measure")
        grid.add_column("", justify="right")
        for row in cells.items():
            add_row(grid, row)
    else:
        for name in cells:
            grid.add_column(name, justify="right")
        add_row(grid, (*cells.values(),))
    return "\n".join([printable(title), table_text(grid, 140), *map(printable, notes)])


def percent(value: float) -> str:
    """Return a measure as papers print it, in percent; "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
