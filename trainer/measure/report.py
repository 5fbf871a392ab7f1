"""A run as one HTML file that opens offline: curves, and held-out samples with what the model predicted for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from shards.atomic import atomic_write
from trainer.measure.curves import OBJECTIVE, RUN, SPEED, Drawn, benchmark_charts, draw
from trainer.measure.drawing import COLOURS, Picture, ink, marked
from trainer.measure.panels import AnyPanel, ConversationPanel, Panel, Span

_QUALITY = 70
"""JPEG quality, from 1 to 95."""
_LABELS = {
    "iou": "IoU",
    "swap_gap": "IoU less that with another object's caption",
    "caption": "caption loss",
    "video_iou": "IoU over all frames",
    "empty_right": "share of the empty masks that are predicted empty",
    "lang": "language loss",
}
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
.video { grid-column: 1 / -1 } .video .pictures { grid-template-columns: 1fr }
.video .pictures figure { max-width: none }
.strip { display: flex; gap: .4rem } .strip img { min-width: 0; flex: 0 1 256px }
.strip img { width: auto; max-width: 256px } .sample p.turn { margin: .15rem 0 0; padding-left: 5em; text-indent: -5em }
.turn b { display: inline-block; width: 5em; text-indent: 0; font-weight: normal; color: #666 }
.turn.answer { margin-bottom: .3rem } mark { padding: 0 .2em; border-radius: 2px }
{% for style in colours %}.mask{{ loop.index0 }} { {{ style }} } {% endfor %}
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
{% for sample in samples %}<div class="sample{{ " video" if sample.video }}">
{% if sample.strips %}<div class="pictures">
{% for name, sources in sample.strips %}<figure><div class="strip">{% for source in sources %}
<img alt="" src="{{ source }}">{% endfor %}</div><figcaption>{{ name }}</figcaption></figure>
{% endfor %}</div>{% endif %}
{% for role, spans in sample.turns %}<p class="turn {{ role }}"><b>{{ role }}</b>{% for span in spans %}
{%- if span.number is none %}{{ span.text }}{% else -%}
<mark class="mask{{ span.number }}">{{ span.text }}</mark>{% endif %}{% endfor %}</p>
{% endfor %}{% if sample.caption is not none %}<p><code>{{ sample.caption }}</code></p>{% endif %}
{% for name, value in sample.numbers %}<p>{{ name }} {{ "%.3f" | format(value) }}</p>{% endfor %}
<p class="note">{{ sample.name }}</p></div>
{% endfor %}</div>{% endfor %}{% endfor %}
{% if speed %}<h2 id="speed">Speed and memory</h2>
{{ charts(speed) }}{% endif %}
<h2 id="configuration">Configuration</h2><pre>{{ config }}</pre>
</body></html>
"""


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
    sheets: Mapping[str, Mapping[int, Sequence[AnyPanel]]],
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
    of_run = [*(RUN if several else RUN[1:]), *benchmark_charts(records)]
    run = draw(of_run, records)  # the loss of a single objective is in its section
    speed = draw(SPEED, records)
    colours = [f"background: rgb{rgb}; color: {ink(number)}" for number, rgb in enumerate(COLOURS)]
    html = page.render(
        title=title, facts=facts, run=run, sections=sections, speed=speed, config=config, colours=colours
    )
    atomic_write(path, html.encode("utf-8", "replace"))


def _sample(panel: AnyPanel) -> dict[str, Any]:
    """Return what the page shows of a held-out object or conversation."""
    shown = _conversation(panel) if isinstance(panel, ConversationPanel) else _object(panel)
    strips = [(name, [*map(_data_uri, pictures)]) for name, pictures in shown.pop("strips")]
    numbers = [(_LABELS.get(name, name), value) for name, value in panel.values.items() if value == value]
    return {"name": panel.name, "numbers": numbers, "strips": strips, **shown}


def _object(panel: Panel) -> dict[str, Any]:
    strips = {"picture": panel.image} if panel.prompt is None else {"region to describe": panel.prompt}
    if panel.prediction is not None:
        strips["picture"] = panel.image
        strips["true mask"] = marked(panel.image, [panel.truth])
        strips["predicted mask"] = marked(panel.image, [panel.prediction])
    return {"strips": [(name, [picture]) for name, picture in strips.items()], "caption": printable(panel.caption)}


def _conversation(panel: ConversationPanel) -> dict[str, Any]:
    def shown(span: Span) -> dict[str, Any]:
        number = None if span.number is None else span.number % len(COLOURS)
        return {"text": printable(span.text), "number": number}

    return {
        "name": f"{panel.name} ({panel.kind})",
        "video": len(panel.frames) > 1,
        "strips": panel.strips(),
        "turns": [(role, [*map(shown, spans)]) for role, spans in panel.lines()],
        "caption": None,
    }


def _data_uri(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def printable(text: str) -> str:
    """Return `text` with a dot in place of each character that cannot be shown."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
