"""A run as one HTML file that opens offline: curves, and held-out samples with what the model made of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from shards.atomic import atomic_write
from trainer.objectives.losses import NOT_COMPARABLE

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RED = np.array([220, 30, 30])

_CURVES = {
    "training losses": ("loss", "bce", "dice", "lang", "anchor", "caption"),
    "BCE and Dice loss at evenly spread points: training and held-out samples": (
        *("bce_uniform", "dice_uniform", "held_out/bce", "held_out/dice_loss"),
    ),
    "held-out mask loss (BCE + Dice)": ("held_out/mask_loss",),
    "held-out caption loss": ("held_out/caption",),
    "held-out IoU and Dice": ("held_out/iou", "held_out/dice", "held_out/ciou"),
    "held-out gap between own and swapped captions": ("held_out/swap_gap",),
    "words a caption": ("caption_tokens",),
    "entropy of words (nats)": ("entropy",),
    "share of captions at the limit, distinct pairs of words": ("at_limit", "distinct_2"),
    "learning rate": ("lr",),
    "samples a second": ("samples_per_second",),
    "tokens a second": ("tokens_per_second",),
    "model flops utilisation": ("mfu",),
    "share of time spent waiting for data, mean and slowest process": ("data_wait", "data_wait_max"),
    "memory of a process (bytes)": ("memory_bytes",),
}
"""Title -> names of what it shows."""
_NOTES = {"training losses": (("bce", "dice"), f"{NOT_COMPARABLE}.")}
"""Title -> where one of these names is shown, what to know about it."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; color: #222 }
figure { margin: 0 } img { width: 100%; display: block } svg { max-width: 100%; height: auto }
.facts td { padding: .1rem 1.2rem .1rem 0 } .samples { border-collapse: collapse; table-layout: fixed; width: 100% }
.samples th, .samples td { padding: .3rem; text-align: left; vertical-align: top; overflow-wrap: anywhere }
code { background: #f2f2f2; padding: .1rem .3rem } pre { background: #f7f7f7; padding: .8rem; overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1>
<table class="facts">{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Curves</h2>
{% for name, svg, note in curves %}<figure aria-label="{{ name }}">{{ svg }}
{% if note %}<figcaption>{{ note }}</figcaption>{% endif %}</figure>
{% endfor %}
{% for step, panels in sheets %}<h2>Held-out samples after step {{ step }}</h2>
<table class="samples">
<tr><th>prompt</th><th>image</th><th>ground truth</th><th>prediction</th><th>caption</th></tr>
{% for panel in panels %}<tr>
{% for source in panel.pictures %}<td>{% if source %}<img alt="" src="{{ source }}">{% endif %}</td>{% endfor %}
<td><code>{{ panel.caption }}</code><br>
{% for name, value in panel.numbers %}{{ name }} {{ "%.3f" | format(value) }}<br>{% endfor %}{{ panel.name }}</td></tr>
{% endfor %}</table>{% endfor %}
<h2>Configuration</h2><pre>{{ config }}</pre>
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


def write_report(
    path: Path,
    title: str,
    facts: dict[str, str],
    records: list[dict[str, Any]],
    sheets: Mapping[int, Sequence[Panel]],
    config: str,
) -> None:
    """Write the report; text is escaped.

    Args:
        records: what `Journal.records` holds.
        sheets: held-out samples by the step after which they were looked at.
    """
    curves = []
    for title_of_curve, names in _CURVES.items():
        # A mix of objectives writes names such as dual/bce.
        keys = [key for key in dict.fromkeys(k for r in records for k in r) if _belongs(key, names)]
        if keys:
            named, note = _NOTES.get(title_of_curve, ((), ""))
            note = note if any(_belongs(key, named) for key in keys) else ""
            curves.append((title_of_curve, _curve(title_of_curve, records, keys), note))
    page = Environment(autoescape=True).from_string(_PAGE)
    shown = [(step, [_row(panel) for panel in panels]) for step, panels in sorted(sheets.items(), reverse=True)]
    html = page.render(title=title, facts=facts, curves=curves, sheets=shown, config=config)
    atomic_write(path, html.encode("utf-8", "replace"))


def _row(panel: Panel) -> dict[str, Any]:
    return {
        "name": panel.name,
        "caption": printable(panel.caption),
        "numbers": [(name, value) for name, value in panel.values.items() if value == value],
        "pictures": [
            panel.prompt is not None and _data_uri(panel.prompt),
            _data_uri(panel.image),
            _data_uri(tinted(panel.image, panel.truth)),
            panel.prediction is not None and _data_uri(tinted(panel.image, panel.prediction)),
        ],
    }


def tinted(image: Picture, mask: Mask) -> Picture:
    """`image` (h, w, 3) with `mask` (h, w) over it in red."""
    out = image.copy()
    out[mask] = (0.45 * image[mask] + 0.55 * RED).astype(np.uint8)
    return out


def _belongs(key: str, names: Sequence[str]) -> bool:
    """Whether a record's key is one of `names`, of a single objective or of one in a mix."""
    parts = key.split("/")
    held_out = "held_out/" if parts[0] == "held_out" else ""
    return held_out + parts[-1] in names


def _curve(title: str, records: list[dict[str, Any]], keys: Sequence[str]) -> Markup:
    from matplotlib import rc_context  # takes a second, which only the process that draws should spend
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 2.6))
        axes = figure.add_axes((0.07, 0.2, 0.92, 0.68))  # a layout that is computed takes twice as long as all the rest
        common = "held_out/" if all(key.startswith("held_out/") for key in keys) else ""
        for key in keys:
            own = [r for r in records if key in r]
            axes.plot([r["step"] for r in own], [r[key] for r in own], label=key.removeprefix(common))
        axes.set_title(title, loc="left")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend(frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :])  # without the XML header, which has no place inside HTML


def _data_uri(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
