"""Curves of a run's records, as SVG, with legends in HTML beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.measure.journal import BENCHMARK
from trainer.objectives.losses import NOT_COMPARABLE

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
_KINDS = ("referring", "grounded_caption", "regions", "chat")
"""Kinds of conversation."""
_MOST_POINTS = 400
"""Points of a line; where there are more records, each is the mean of several, so that the file stays small."""
_FEW_POINTS = 40
"""Up to here the points of a line are marked."""


@dataclass(frozen=True)
class Chart:
    """A chart of the report."""

    title: str
    lines: Mapping[str, str]
    """Name in the records, without the objective's name, -> name in the legend."""
    note: str = ""
    """What to know about the values."""
    is_share: bool = False
    """Whether the values lie between 0 and 1, which both are shown."""


@dataclass(frozen=True)
class Drawn:
    """A chart with its lines drawn."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    """(colour, name) of each line; empty where the chart has one at most."""
    note: str


OBJECTIVE = (
    Chart(
        "Training losses",
        {"loss": "weighted sum", "bce": "BCE", "dice": "Dice", "lang": "language", "anchor": "anchor"}
        | {"caption": "caption"},
        f"{NOT_COMPARABLE}.",
    ),
    Chart(
        "Mask losses at evenly spread points",
        {"bce_uniform": "BCE, training", "held_out/bce": "BCE, held out"}
        | {"dice_uniform": "Dice, training", "held_out/dice_loss": "Dice, held out"},
    ),
    Chart("Held-out mask loss (BCE + Dice)", {"held_out/mask_loss": "mask loss"}),
    Chart("Held-out caption loss", {"held_out/caption": "caption loss"}),
    Chart("Held-out language loss", {"held_out/lang": "language loss"}),
    Chart("Held-out language loss by kind", {f"held_out/{kind}/lang": kind for kind in _KINDS}),
    Chart(
        "Held-out IoU and Dice",
        {"held_out/iou": "IoU", "held_out/dice": "Dice", "held_out/ciou": "cIoU"}
        | {"held_out/video_iou": "IoU over all frames"},
    ),
    Chart("Held-out IoU by kind", {f"held_out/{kind}/iou": kind for kind in _KINDS}),
    Chart(
        "Generated answers with [SEG], shares",
        {"held_out/seg_asked": "asked for a mask", "held_out/seg_unasked": "not asked for one"},
        is_share=True,
    ),
    Chart(
        "Refusals, shares",
        {"held_out/refused_right": "of expressions of no object", "held_out/refused_wrong": "of an object"},
        is_share=True,
    ),
    Chart("Empty masks that are predicted empty, share", {"held_out/empty_right": "share"}, is_share=True),
    Chart("Held-out IoU with the own caption minus IoU with another object's", {"held_out/swap_gap": "difference"}),
    Chart("Words per caption", {"caption_tokens": "words"}),
    Chart("Entropy of words (nats)", {"entropy": "entropy"}),
    Chart("Captions, shares", {"at_limit": "cut at the limit", "distinct_2": "distinct pairs of words"}),
    Chart("Cosine of this gradient with that of the other objectives", {"alignment": "cosine"}),
)
"""Charts of each objective."""
RUN = (
    Chart("Loss: weighted sum of the objectives", {"loss": "loss"}),
    Chart("Learning rate", {"lr": "learning rate"}),
    Chart("Gradient norm", {"grad_norm": "norm"}),
)
"""Charts of the run as a whole."""
SPEED = (
    Chart("Samples per second", {"samples_per_second": "samples"}),
    Chart("Tokens per second", {"tokens_per_second": "tokens"}),
    Chart("Padding, share of the language model's tokens", {"padding": "padding"}),
    Chart("Share of the step in which the teacher writes captions", {"captions": "captions"}),
    Chart("Model FLOPs utilisation", {"mfu": "mfu"}),
    Chart(
        "Share of time spent waiting for data", {"data_wait": "mean of processes", "data_wait_max": "slowest process"}
    ),
    Chart("Memory per process (bytes)", {"memory_bytes": "bytes"}),
)


def benchmark_charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return charts of the benchmarks that records hold, each with as many measures as there are colours.

    Precisions at thresholds of the IoU ("P@0.5") have charts of their own.
    """
    names = dict.fromkeys(name for record in records for name in record if name.startswith(f"{BENCHMARK}/"))
    of_title: dict[str, list[str]] = {}
    for name in names:
        _, benchmark, measure = name.split("/", 2)
        title = f"Benchmark {benchmark}" + (", precision at an IoU" if measure.startswith("P@") else "")
        of_title.setdefault(title, []).append(name)
    return [
        Chart(title, {name: name.split("/", 2)[2] for name in found[start : start + len(_COLOURS)]})
        for title, found in of_title.items()
        for start in range(0, len(found), len(_COLOURS))
    ]


def draw(charts: Sequence[Chart], records: Sequence[Mapping[str, Any]], objective: str = "") -> list[Drawn]:
    """Draw the charts of which the records hold a line.

    Args:
        charts: in their order on the page.
        records: what `Journal.records` holds.
        objective: draw values of this objective of a mix; their names are such as dual/bce and held_out/dual/iou.
    """
    drawn = []
    last = max((record["step"] for record in records), default=0)
    for chart in charts:
        lines = {}
        for name, label in chart.lines.items():
            if points := _points(records, _key(name, objective)):
                lines[label] = points
        if lines:
            note = chart.note if any(label in lines for label in ("BCE", "Dice")) else ""
            svg = _svg(f"{objective} {chart.title}", [*lines.values()], last, chart.is_share)
            legend = [*zip(_COLOURS, lines, strict=False)] if len(chart.lines) > 1 else []
            drawn.append(Drawn(chart.title, svg, legend, note))
    return drawn


def _key(name: str, objective: str) -> str:
    """Return the name under which records of a mix hold a value of an objective."""
    if not objective:
        return name
    group = "held_out/" if name.startswith("held_out/") else ""
    return f"{group}{objective}/{name.removeprefix(group)}"


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each record with this key; means of neighbours where there are too many."""
    found = np.array([(record["step"], record[key]) for record in records if key in record], np.float64).reshape(-1, 2)
    if len(found) > _MOST_POINTS:
        found = np.stack([part.mean(0) for part in np.array_split(found, _MOST_POINTS)])
    return [(float(step), float(value)) for step, value in found]


def _svg(name: str, lines: Sequence[Sequence[tuple[float, float]]], last: int, is_share: bool) -> Markup:
    """Draw lines of (step, value) from step 0 to the `last`."""
    from matplotlib import rc_context  # takes a second, which only the process that draws should spend
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # The names of parts of a drawing derive from the salt: all drawings are on one page.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(5, 2.2))
        axes = figure.add_axes((0.12, 0.2, 0.85, 0.68))  # a layout that is computed takes twice as long as all the rest
        for colour, points in zip(_COLOURS, lines, strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, marker="." if len(points) <= _FEW_POINTS else "", clip_on=False)
        axes.set_xlim(0, max(1, last))
        if is_share:
            axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("optimiser step")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :])  # without the XML header, which has no place inside HTML
