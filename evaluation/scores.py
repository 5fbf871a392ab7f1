"""Metrics of evaluated items, from sums that any number of processes can add up.

cIoU is the sum of intersections divided by the sum of unions; gIoU the mean IoU of the items, or of the masks of
conversations; Pr@0.5 the share of them whose IoU is above 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shards.printable import printable
from shards.tables import add_row, plain_table, table_text
from trainer.objectives import load_objective

ALL = "all"
"""Name of the row for all sources together."""
_MEANS = {
    "iou": "giou",
    "hit": "pr@0.5",
    "dice": "dice",
    "precision": "precision",
    "recall": "recall",
    "swap_gap": "swap_gap",
    "video_iou": "video_iou",
    "empty_right": "empty_right",
    "caption": "caption_ce",
    "lang": "lang_ce",
    "seg_asked": "seg_asked",
    "seg_unasked": "seg_unasked",
    "refused_right": "refused_right",
    "refused_wrong": "refused_wrong",
}
"""Values that are averaged over what has them, and the names of their means in the result."""
_OF_ANSWERS = ("caption_ce", "lang_ce", "seg_asked", "seg_unasked", "refused_right", "refused_wrong")
"""Means of conversations that are shown in a table of their own, which is wide enough already."""
_TITLES = {
    "ciou": "cIoU",
    "giou": "gIoU",
    "pr@0.5": "Pr@0.5",
    "video_iou": "video IoU",
    "caption_ce": "caption CE",
    "lang_ce": "language CE",
    "cycle_iou": "cycle IoU",
}


@dataclass
class Tally:
    """Sums over any number of items."""

    samples: int = 0
    items: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of objects that could not be evaluated, by reason."""
    sums: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """How many of each value there are: an item may have no caption-swap gap."""

    def add(self, values: Mapping[str, Tensor], items: int) -> None:
        """Count in items with the values of `trainer.objectives.judging.Judged`, NaN where there is none."""
        if "iou" in values:
            iou = values["iou"]
            values = {**values, "hit": (iou > 0.5).float().where(~iou.isnan(), torch.nan)}
        self.items += items
        for name in (*_MEANS, "overlap", "union"):
            if name in values:
                value = values[name].double()
                known = ~value.isnan()
                self.sums[name] = self.sums.get(name, 0.0) + float(value[known].sum())
                self.counts[name] += int(known.sum())

    def merge(self, other: Tally) -> None:
        """Add the sums of another process or source."""
        self.samples += other.samples
        self.items += other.items
        self.left_out += other.left_out
        self.counts += other.counts
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, without those that no item has. If all masks are empty, cIoU is 1."""
        found = {}
        if self.counts["union"]:
            found["ciou"] = self.sums["overlap"] / self.sums["union"] if self.sums["union"] else 1.0
        return found | {
            title: self.sums[name] / self.counts[name] for name, title in _MEANS.items() if self.counts[name]
        }

    def to_json(self, objective: str) -> dict[str, Any]:
        """Return the metrics, and the numbers of samples, items and objects that were left out."""
        found: dict[str, Any] = {"samples": self.samples, "items": self.items, "left_out": dict(self.left_out)}
        found |= self.metrics()
        if load_objective(objective).reads_conversations:
            found["masks"] = self.counts["union"]
            found["empty_masks"] = self.counts["empty_right"]
        if load_objective(objective).swaps_captions:
            if "giou" in found:
                found["cycle_iou"] = found["giou"]
            found["swap_items"] = self.counts["swap_gap"]
        return found


def table(
    title: str, by_source: Mapping[str, Mapping[str, Any]], by_kind: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Return the results of each source and each kind of conversation, from `Tally.to_json`, as text.

    Below them stands what was left out. Of conversations of one kind there is no line for it.
    """
    kinds = by_kind if by_kind and len(by_kind) > 1 else {}
    lines = [*by_source.items(), *((f"kind {kind}", values) for kind, values in kinds.items())]
    names = list(dict.fromkeys(name for values in by_source.values() for name in values if name != "left_out"))
    if "cycle_iou" in names:
        names[names.index("giou")] = "cycle_iou"  # the same number, under its usual name
        names = list(dict.fromkeys(names))
    of_answers = [name for name in names if name in _OF_ANSWERS] if "lang_ce" in names else []
    tables = [_grid(title, lines, [name for name in names if name not in of_answers])]
    if of_answers:
        tables.append(_grid("answers", lines, of_answers))
    return "\n".join([*tables, *map(printable, _left_out(by_source))])


def _grid(title: str, lines: Sequence[tuple[str, Mapping[str, Any]]], names: Sequence[str]) -> str:
    """Return some of the results as a table."""
    grid = plain_table(title)
    grid.add_column("source")
    for name in names:
        grid.add_column(_TITLES.get(name, name.replace("_", " ")), justify="right")
    for label, values in lines:
        add_row(grid, (label, *(_cell(values.get(name)) for name in names)))
    return table_text(grid, 140)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _left_out(by_source: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [
        f"left out of {source}: {count:,} {reason}"
        for source, values in by_source.items()
        if source != ALL
        for reason, count in values["left_out"].items()
    ]
