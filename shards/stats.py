"""Statistics of shard sets: samples, objects, areas, prompt cells, texts, sizes; as text, JSON and a page.

They are measured on samples spread evenly over the set, through the reader.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from tqdm import tqdm

from shards import codec
from shards.atomic import atomic_write
from shards.errors import BadShard
from shards.format import Field
from shards.output_folder import check_output_file
from shards.printable import printable
from shards.program import check_set
from shards.reader import ShardSet
from shards.sample import usable_texts
from shards.sets import open_sets
from shards.tables import add_row, plain_console, plain_table
from shards.where import Chosen, choose_of

Numbers = NDArray[np.float64]
_PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1070px; color: #222; padding: 0 1rem }
 h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere }
 table { border-collapse: collapse } td, th { padding: .1rem 1rem .1rem 0; text-align: right }
 td:first-child, th:first-child { text-align: left }
 .plots { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem } figure { margin: 0 }
 svg { max-width: 100%; height: auto }
</style>
<h1>{{ title }}</h1>
{% for set in sets %}
<h2>{{ set.name }}</h2>
{% for line in set.lines %}<p>{{ line }}</p>{% endfor %}
<table>
<tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in set.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<div class="plots">{% for name, svg in set.plots %}<figure aria-label="{{ name }}">{{ svg }}</figure>{% endfor %}</div>
{% endfor %}
</html>
""")
_HEADS = ("quantity", "count", "min", "median", "mean", "max")

FRAMES = "frames per sample"
OBJECTS = "objects per sample"
AREA = "area of a region, % of the picture"
CELLS = "prompt cells per region"
TEXTS = "texts per object"
WORDS = "words per text"
TURNS = "turns per conversation"
TURN_WORDS = "words per turn"
SIDE = "side of the original, pixels"
BYTES = "MB per sample"
QUANTITIES = (FRAMES, OBJECTS, AREA, CELLS, TEXTS, WORDS, TURNS, TURN_WORDS, SIDE, BYTES)
_BINS: dict[str, list[float]] = {
    AREA: [0, 0.1, 0.2, 0.4, 1, 3, 10, 30, 100],  # small objects are where prompts fail
    CELLS: [0, 1, 4, 8, 16, 32, 64, 128, 257],  # fewer than 4 are what a recipe fills up or drops
}
"""Edges of the bins where most values are small. The last bin includes its upper edge."""


class SetStats:
    """Statistics of some samples of one set.

    Args:
        samples: number of samples to measure; all of them where there are fewer.
        tick: called with 1 after each.
        chosen: measure these objects alone, and samples that have one; None: all.

    Raises:
        BadShard: a sample cannot be decoded.
    """

    def __init__(
        self, shards: ShardSet, samples: int, tick: Callable[[int], object], chosen: Chosen | None = None
    ) -> None:
        manifest = shards.manifest
        self._chosen = chosen
        self.name = str(shards.folder)
        self.manifest = manifest
        positions = np.flatnonzero(chosen.counts) if chosen else np.arange(len(shards))
        spread = np.linspace(0, len(positions) - 1, min(samples, len(positions))).round().astype(int)
        positions = positions[np.unique(spread)]
        self.measured = len(positions)
        self.bytes = sum(shard.bytes for shard in manifest.shards)
        values: dict[str, list[float]] = {name: [] for name in QUANTITIES}
        self.regions = {"empty": 0, "filled up": 0, "fewer than 4 cells": 0}
        """Number of regions (objects in a frame): not visible; with cells added by the recipe; with few cells."""
        self.without = {"without objects": 0, "without pictures": 0}
        """Number of samples."""
        for position in positions:
            try:
                self._measure(shards, int(position), values)
            except BadShard as error:
                where = error.where or f"{shards.folder}: {shards.key(int(position))}"
                raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=check_set()) from None
            tick(1)
        self.values: dict[str, Numbers] = {name: np.array(numbers) for name, numbers in values.items()}
        """All measured values, by quantity."""

    def _measure(self, shards: ShardSet, position: int, values: dict[str, list[float]]) -> None:
        meta, members = shards.sample(position)
        frames = meta["frames"]
        objects = meta["objects"]
        values[FRAMES].append(len(frames))
        numbers = self._chosen.of(position) if self._chosen else range(len(objects))
        values[OBJECTS].append(len(numbers))
        values[BYTES].append(int(shards.index[position]["size"]) / 1e6)
        for n in numbers:
            texts = usable_texts(objects[n])
            values[TEXTS].append(len(texts))
            values[WORDS] += [len(text.split()) for text in texts]
        if turns := meta.get("turns"):
            values[TURNS].append(len(turns))
            values[TURN_WORDS] += [len(turn["question"].split()) + len(turn["answer"].split()) for turn in turns]
        self.without["without objects"] += not objects
        self.without["without pictures"] += not frames
        for i, frame in enumerate(frames):
            number = None if len(frames) == 1 else i + 1
            values[SIDE] += [frame[side] for side in ("height", "width") if isinstance(frame.get(side), int)]
            if not objects:
                continue
            cells = codec.decode_prompts(members[Field("prompt_masks", number)], shards.recipe.grid).sum(axis=(1, 2))
            if len(cells) != len(objects):
                raise BadShard("number of prompts", met=str(len(cells)), wanted=f"{len(objects)}, as in the JSON")
            for n in numbers:
                count = cells[n]
                mask = codec.decode_masks(members[Field("masks", number)], shards.recipe.sam_size, [n])
                share = 100 * float(mask.mean())
                if not share and not count:
                    self.regions["empty"] += 1
                    continue
                values[AREA].append(share)
                values[CELLS].append(int(count))
                filled = objects[n].get("filled")
                self.regions["filled up"] += isinstance(filled, list) and any(filled[i : i + 1])
                self.regions["fewer than 4 cells"] += bool(count < 4)

    def lines(self) -> list[str]:
        """Return lines of text: about the whole set, the measured samples, and what a condition leaves out."""
        manifest = self.manifest
        left_out = sum(manifest.left_out.values())
        lines = [
            f"source {manifest.source}, recipe {manifest.recipe}: {manifest.samples:,} "
            f"samples, {manifest.objects:,} objects, {len(manifest.shards):,} shards, {self.bytes / 1e9:.2f} GB; "
            f"{left_out:,} of {manifest.inputs:,} inputs left out; pictures {manifest.pictures}",
        ]
        visible = len(self.values[AREA])
        parts = ", ".join(f"{count:,} {name}" for name, count in self.regions.items())
        samples = ", ".join([f"{self.measured:,} samples", *(f"{n:,} {name}" for name, n in self.without.items() if n)])
        lines.append(f"measured {samples}: {visible:,} visible regions; {parts}")
        return [*lines, str(self._chosen)] if self._chosen else lines

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row of the table per quantity, with the columns of `_HEADS`."""
        rows = []
        for name, values in self.values.items():
            if len(values):
                shown = [_number(v) for v in (values.min(), np.median(values), values.mean(), values.max())]
                rows.append((name, f"{len(values):,}", *shown))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the statistics for programs, with quartiles of each quantity."""
        manifest = self.manifest
        quantiles = {
            name: {
                "count": len(v),
                "mean": float(v.mean()),
                "quartiles": np.quantile(v, [0, 0.25, 0.5, 0.75, 1]).tolist(),
            }
            for name, v in self.values.items()
            if len(v)
        }
        return {
            "folder": self.name,
            "source": manifest.source,
            "samples": manifest.samples,
            "objects": manifest.objects,
            "shards": len(manifest.shards),
            "bytes": self.bytes,
            "measured": self.measured,
            "regions": self.regions,
            "samples_without": self.without,
            "quantities": quantiles,
            **({"where": str(self._chosen)} if self._chosen else {}),
        }

    def plots(self) -> list[tuple[str, Markup]]:
        """Return (quantity, SVG of its histogram) for each quantity that varies."""
        return [(n, _histogram(n, v, printable(self.name))) for n, v in self.values.items() if len(np.unique(v)) > 1]


def _number(value: float) -> str:
    """Return the number as text of few digits."""
    whole = not value % 1
    return f"{value:,.0f}" if whole else f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _histogram(name: str, values: Numbers, salt: str) -> Markup:
    """Return a histogram as SVG; `salt` makes its ids differ from those of other sets on the page."""
    figure = Figure(figsize=(4, 2.6))
    axes = figure.add_axes((0.14, 0.24, 0.84, 0.64))
    whole = not np.any(values % 1)
    if bins := _BINS.get(name):
        counts, _ = np.histogram(values, bins)
        axes.bar([_span(low, high, whole) for low, high in pairwise(bins)], counts)
        axes.tick_params(axis="x", labelrotation=45)
    else:
        few = whole and values.max() - values.min() < 60
        axes.hist(values, (np.arange(values.min(), values.max() + 2) - 0.5).tolist() if few else 40)
        if few:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_title(name, fontsize=10)
    file = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :])  # without the XML header, which has no place inside HTML


def _span(low: float, high: float, whole: bool) -> str:
    """Return the label of the bin of values from `low` to below `high`."""
    last = high - 1 if whole else high
    return f"{low:g}" if low == last else f"{low:g}-{last:g}"


def measure_sets(paths: Sequence[Path | str], samples: int, where: str | None = None) -> list[SetStats]:
    """Measure `samples` samples of each set that `paths` name (see `shards.sets.find_sets`), with a progress bar.

    Args:
        where: measure the objects that this condition chooses, and samples that have one.
    """
    sets = [(one, choose_of(one, where)) for one in open_sets(paths)]
    total = sum(min(samples, int((chosen.counts > 0).sum()) if chosen else len(one)) for one, chosen in sets)
    with tqdm(total=total, unit="sample", desc="stats", mininterval=0.5) as bar:
        return [SetStats(one, samples, bar.update, chosen) for one, chosen in sets]


def table(stats: Sequence[SetStats]) -> str:
    """Return the statistics of all sets as text."""
    text = io.StringIO()
    console = plain_console(110, text)
    for one in stats:
        shown = plain_table(one.name)
        for head in _HEADS:
            shown.add_column(head, justify="left" if head == _HEADS[0] else "right")
        for row in one.rows():
            add_row(shown, row)
        console.print(shown)
        console.print("\n".join(map(printable, one.lines())))
    return text.getvalue().rstrip()


def write_page(stats: Sequence[SetStats], page: Path) -> Path:
    """Write one HTML file that opens offline; return its path. Raises `UserError` where it cannot be written."""
    check_output_file(page)
    sets = [{"name": s.name, "lines": s.lines(), "rows": s.rows(), "plots": s.plots()} for s in stats]
    title = ", ".join(Path(s.name).name for s in stats)
    atomic_write(page, _PAGE.render(title=title, sets=sets, heads=_HEADS).encode("utf-8", "backslashreplace"))
    return page
