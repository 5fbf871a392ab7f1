"""Metrics of evaluated items: sums that any number of processes can add up, and what they come to.

cIoU is all intersections over all unions; gIoU the mean of the items' IoU; Pr@0.5 the share of items whose IoU is above
0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shards.printable import printable
from shards.tables import add_row, plain_table, table_text
from trainer.objectives import load_objective

ALL = "all"
"""The row of all sources together."""
_MEANS = {
    "iou": "giou",
    "hit": "pr@0.5",
    "dice": "dice",
    "precision": "precision",
    "recall": "recall",
    "swap_gap": "swap_gap",
    "caption": "caption_ce",
}
"""What is averaged, and its name in the result."""
_TITLES = {"ciou": "cIoU", "giou": "gIoU", "pr@0.5": "Pr@0.5", "caption_ce": "caption CE", "cycle_iou": "cycle IoU"}


@dataclass
class Tally:
    """Of any number of items."""

    samples: int = 0
    items: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Objects that could not be asked about, by reason."""
    sums: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """How many items have each value: an item may have no caption-swap gap."""

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count in items with the values of `trainer.objectives.judging.Judged`: (M,) each, NaN where there is none."""
        values = {**values, "hit": values["iou"] > 0.5} if "iou" in values else values
        self.items += len(next(iter(values.values())))
        for name in (*_MEANS, "overlap", "union"):
            if name in values:
                value = values[name].double()
                known = ~value.isnan()
                self.sums[name] = self.sums.get(name, 0.0) + float(value[known].sum())
                self.counts[name] += int(known.sum())

    def merge(self, other: Tally) -> None:
        """Count in what another process, or another source, counted."""
        self.samples += other.samples
        self.items += other.items
        self.left_out += other.left_out
        self.counts += other.counts
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """The metrics by their names in the result; none of what no item has. Where all masks are empty, cIoU is 1."""
        found = {}
        if self.counts["union"]:
            found["ciou"] = self.sums["overlap"] / self.sums["union"] if self.sums["union"] else 1.0
        return found | {
            title: self.sums[name] / self.counts[name] for name, title in _MEANS.items() if self.counts[name]
        }

    def to_json(self, objective: str) -> dict[str, Any]:
        """The metrics with the numbers of samples, items and objects left out."""
        found: dict[str, Any] = {"samples": self.samples, "items": self.items, "left_out": dict(self.left_out)}
        found |= self.metrics()
        if load_objective(objective).swaps_captions:
            if "giou" in found:
                found["cycle_iou"] = found["giou"]
            found["swap_items"] = self.counts["swap_gap"]
        return found


def table(title: str, of_source: Mapping[str, Mapping[str, Any]]) -> str:
    """The results, what `Tally.to_json` returns by source, as text; below it what was left out."""
    names = list(dict.fromkeys(name for values in of_source.values() for name in values if name != "left_out"))
    if "cycle_iou" in names:
        names[names.index("giou")] = "cycle_iou"  # the same number under the name that people look for
        names = list(dict.fromkeys(names))
    grid = plain_table(title)
    grid.add_column("source")
    for name in names:
        grid.add_column(_TITLES.get(name, name.replace("_", " ")), justify="right")
    for source, values in of_source.items():
        add_row(grid, (source, *(_cell(values.get(name)) for name in names)))
    return "\n".join([table_text(grid, 140), *map(printable, _left_out(of_source))])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _left_out(of_source: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        f"left out of {source}: {count:,} {reason}"
        for source, values in of_source.items()
        if source != ALL
        for reason, count in values["left_out"].items()
    ]
