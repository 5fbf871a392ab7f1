"""A run as one HTML file that opens offline: curves, and held-out samples with what the model predicted for them."""

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

from shards.atomic import atomic_write
from trainer.measure.curves import OBJECTIVE, RUN, SPEED, Drawn, draw

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RED = np.array([220, 30, 30])
_QUALITY = 70
"""JPEG quality, from 1 to 95."""
_LABELS = {"iou": "IoU", "swap_gap": "IoU less that with another object's caption", "caption": "caption loss"}
"""Names of a sample's numbers in plain words."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin: 2.5rem 0 .8rem; padding-top: .6rem; border-top: 1px solid #ccc } h3 { margin: 1.6rem 0 .6rem }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600 } img { width: 100%; display: block }
svg { width: 100%; height: auto; display: block } nav a { margin-right: 1rem }
.facts th, .facts td { padding: .1rem 1.2rem .1rem 0; text-align: left; vertical-align: top; font-weight: normal }
.facts th { color: #666 }
.charts, .samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)) }
.charts, .samples { gap: 1.4rem 2rem; margin-top: 1rem } .pictures figure { max-width: 256px }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; font-size: 13px }
.legend i { display: inline-block; width: 1.4em; height: 3px; margin-right: .4em; vertical-align: middle }
.note { font-size: 13px; color: #555; margin: 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(105px, 1fr)); gap: .4rem }
.pictures figcaption { font-weight: normal; font-size: 13px; color: #555 }
.sample { overflow-wrap: anywhere; min-width: 0 } .sample p { margin: 0; font-size: 13px }
code { background: #f2f2f2; padding: .1rem .3rem }
pre { background: #f7f7f7; padding: .8rem; overflow-x: auto }
</style></head><body>
{% macro charts(drawn) %}<div class="charts">
{% for chart in drawn %}<figure><figcaption>{{ chart.title }}</figcaption>
{% if chart.legend %}<ul class="legend">{% for colour, name in chart.legend %}<li><i style="background: {{ colour }}">
</i>{{ name }}</li>{% endfor %}</ul>{% endif %}
{{ chart.svg }}{% if chart.note %}<p class="note">{{ chart.note }}</p>{% endif %}</figure>
{% endfor %}</div>{% endmacro %}
<h1>{{ title }}</h1>
<nav>{% for section in sections %}<a href="#{{ section.id }}">{{ section.title }}</a>{% endfor %}
{% if speed %}<a href="#speed">Speed and memory</a>{% endif %}<a href="#configuration">Configuration</a></nav>
<table class="facts">{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{{ charts(run) }}
{% for section in sections %}<h2 id="{{ section.id }}">{{ section.title }}</h2>
{{ charts(section.drawn) }}
{% for step, samples in section.sheets %}<h3>Held-out samples after step {{ step }}</h3>
<div class="samples">
{% for sample in samples %}<div class="sample"><div class="pictures">
{% for name, source in sample.pictures %}<figure><img alt="" src="{{ source }}"><figcaption>{{ name }}</figcaption>
</figure>{% endfor %}</div><p><code>{{ sample.caption }}</code></p>
{% for name, value in sample.numbers %}<p>{{ name }} {{ "%.3f" | format(value) }}</p>{% endfor %}
<p class="note">{{ sample.name }}</p></div>
{% endfor %}</div>{% endfor %}{% endfor %}
{% if speed %}<h2 id="speed">Speed and memory</h2>
{{ charts(speed) }}{% endif %}
<h2 id="configuration">Configuration</h2><pre>{{ config }}</pre>
</body></html>
"""


@dataclass(frozen=True)
class Panel:
    """A held-out object."""

    name: str
    prompt: Picture | None
    """(h, w, 3): the frame that was described, its region tinted; None where there was no region."""
    image: Picture
    """(h, w, 3): the frame to segment."""
    truth: Mask
    """(h, w)."""
    prediction: Mask | None
    """(h, w); None where no mask was predicted."""
    caption: str
    values: dict[str, float]
    """Metrics by their names; NaN is not shown."""


@dataclass(frozen=True)
class _Section:
    """An objective on the page."""

    title: str
    drawn: list[Drawn]
    sheets: list[tuple[int, list[dict[str, Any]]]]

    @property
    def id(self) -> str:
        return f"objective-{self.title}"


def write_report(
    path: Path,
    title: str,
    facts: dict[str, str],
    records: list[dict[str, Any]],
    sheets: Mapping[str, Mapping[int, Sequence[Panel]]],
    config: str,
) -> None:
    """Write the report; text is escaped.

    Args:
        path: of the file.
        title: of the page.
        facts: about the run, by name.
        records: what `Journal.records` holds.
        sheets: for each objective of the run its held-out samples, by the step after which they were evaluated.
        config: the configuration as YAML.
    """
    several = len(sheets) > 1
    sections = [
        _Section(
            objective,
            draw(OBJECTIVE, records, objective if several else ""),
            [(step, [*map(_sample, panels)]) for step, panels in sorted(by_step.items(), reverse=True) if panels],
        )
        for objective, by_step in sheets.items()
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    run = draw(RUN if several else RUN[1:], records)  # the loss of a single objective is in its section
    speed = draw(SPEED, records)
    html = page.render(title=title, facts=facts, run=run, sections=sections, speed=speed, config=config)
    atomic_write(path, html.encode("utf-8", "replace"))


def _sample(panel: Panel) -> dict[str, Any]:
    """Return what the page shows of a held-out object."""
    pictures = {"picture": panel.image} if panel.prompt is None else {"region to describe": panel.prompt}
    if panel.prediction is not None:
        pictures["picture"] = panel.image
        pictures["true mask"] = tinted(panel.image, panel.truth)
        pictures["predicted mask"] = tinted(panel.image, panel.prediction)
    return {
        "name": panel.name,
        "caption": printable(panel.caption),
        "numbers": [(_LABELS.get(name, name), value) for name, value in panel.values.items() if value == value],
        "pictures": [(name, _data_uri(picture)) for name, picture in pictures.items()],
    }


def tinted(image: Picture, mask: Mask) -> Picture:
    """Return `image` (h, w, 3) with `mask` (h, w) over it in red."""
    out = image.copy()
    out[mask] = (0.45 * image[mask] + 0.55 * RED).astype(np.uint8)
    return out


def _data_uri(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def printable(text: str) -> str:
    """Return `text` with a dot in place of each character that cannot be shown."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
