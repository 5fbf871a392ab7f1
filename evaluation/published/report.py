"""Pages of a benchmark: items to look at, each with its picture or frames and what the answers cover of the
truth.

A page is one file that opens offline: the pictures are in it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray
from PIL import Image

from evaluation.published.datasets import OpenBenchmark, View
from evaluation.published.predictions import Prediction
from evaluation.published.scoring import Scored, percent
from inference.pictures import write_file
from pipeline.resize import UInt8
from shards.errors import BadInput
from shards.preview import tint

SHOWN = 8
"""Items of each kind on a page."""
_STRENGTH = 0.6  # of the colours
_PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222; padding: 0 1rem }
 table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .7rem; text-align: right }
 th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
 .items { display: grid; grid-template-columns: repeat(auto-fill, minmax({{ width }}px, 1fr)); gap: 1.2rem }
 figure { margin: 0 } .panels { display: flex; gap: 4px; align-items: flex-start }
 img { width: 100%; min-width: 0; display: block } .panels > * { flex: 1; min-width: 0 }
 figcaption { overflow-wrap: anywhere; color: #555 } figcaption b { color: #222 }
 .right { color: #1ebe3c } .missed { color: #2878ff } .wrong { color: #e61919 }
</style>
<h1>{{ title }}</h1>
<table><tr><th></th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for label, cells in rows %}<tr><td>{{ label }}</td>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
<p>Colours: {% for name, meaning in colours %}<b class="{{ name }}">{{ meaning }}</b>{{ "." if loop.last else ", " }}
{%- endfor %}</p>
{% for heading, items in sections %}<h2>{{ heading }}</h2>
<div class="items">{% for item in items %}<figure>
<div class="panels">{% for label, image in item.panels %}<div><img src="{{ image }}" alt="{{ label }}">
{{ label }}</div>{% endfor %}</div>
<figcaption><b>{{ item.phrase }}</b><br>{% for text in item.texts %}{{ text }}<br>{% endfor %}
{{ item.id }}, {{ item.path }}</figcaption></figure>
{% endfor %}</div>{% endfor %}
</html>
""")


@dataclass(frozen=True)
class Section:
    """A heading with items: their places in the items that were measured."""

    heading: str
    places: Sequence[int]


@dataclass(frozen=True)
class Answered:
    """Predictions with their name on the page, and the file that they come from, for messages."""

    label: str
    of_item: Mapping[str, Prediction]
    scored: Scored
    where: str


def worst_best_random(scored: Scored, number: int = SHOWN) -> list[Section]:
    """Return the items of the lowest and the highest quality, of equal ones the largest first, and some at random."""
    order = np.lexsort((-scored.weight, scored.quality))
    best = np.lexsort((-scored.weight, -scored.quality))
    drawn = np.random.default_rng(0).permutation(len(order))
    return [
        Section("Worst", order[:number].tolist()),
        Section("Best", best[:number].tolist()),
        Section("At random", drawn[:number].tolist()),
    ]


def write_page(
    file: Path,
    title: str,
    opened: OpenBenchmark,
    answers: Sequence[Answered],
    sections: Sequence[Section],
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    notes: Sequence[str],
) -> None:
    """Write a page of items.

    Args:
        answers: one or more sets of answers to the same items, in the same order; each gets a panel per item.
        names: heads of the table.
        rows: label and cells of each of its lines.
    """
    shown = [(one.heading, [_item(opened, answers, place) for place in one.places]) for one in sections if one.places]
    page = _PAGE.render(
        title=title,
        names=names,
        rows=rows,
        notes=notes,
        colours=opened.benchmark.colours,
        sections=shown,
        width=260 * (1 + len(answers)),
    )
    write_file(file, page.encode("utf-8", "backslashreplace"))


def _item(opened: OpenBenchmark, answers: Sequence[Answered], place: int) -> dict[str, Any]:
    asked, item = answers[0].scored.items[place]
    named = {"id": item.id, "path": asked.path, "phrase": item.phrase}
    texts = [f"{one.label} {one.of_item[item.id].answer}".strip() for one in answers]
    try:
        truth = opened.read(asked)
        views = [opened.benchmark.views(truth, item, one.of_item[item.id], one.where) for one in answers]
    except BadInput as error:  # a frame that measuring did not need to decode
        return {**named, "panels": [], "texts": [*texts, str(error)]}
    panels = []
    for of_answers in zip(*views, strict=True):
        panels.append((of_answers[0].label, _jpeg(of_answers[0].picture)))
        for one, view in zip(answers, of_answers, strict=True):
            quality = f"{opened.benchmark.quality_name} {percent(one.scored.quality[place])}"
            panels.append((f"{one.label} {quality}".strip(), _jpeg(_painted(view))))
    return {**named, "panels": panels, "texts": texts}


def _painted(view: View) -> UInt8:
    counted = np.ones_like(view.truth) if view.ignored is None else ~view.ignored
    answer, truth = view.answer, view.truth
    return tint(view.picture, np.stack([answer & ~truth, truth & ~answer, answer & truth]) & counted, _STRENGTH)


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
