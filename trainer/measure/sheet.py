"""A contact sheet: held-out samples and the model's predictions in one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from trainer.measure.report import Panel, Picture, printable, tinted

_GAP = 6
_LINE = 14
_LINES = 3


def contact_sheet(panels: Sequence[Panel]) -> Picture:
    """Draw one row per panel: prompt, image, truth, prediction, and caption and numbers below. (h, w, 3) uint8.

    Args:
        panels: at least one, all of one size.
    """
    side_y, side_x = panels[0].image.shape[:2]
    height = side_y + _LINES * _LINE + 2 * _GAP
    width = 4 * (side_x + _GAP) + _GAP
    page = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(page)
    for row, panel in enumerate(panels):
        top = row * height + _GAP
        predicted = None if panel.prediction is None else tinted(panel.image, panel.prediction)
        for column, picture in enumerate((panel.prompt, panel.image, tinted(panel.image, panel.truth), predicted)):
            if picture is not None:
                page.paste(Image.fromarray(picture), (_GAP + column * (side_x + _GAP), top))
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in panel.values.items() if value == value)
        lines = textwrap.wrap(printable(panel.caption), width // 7)[: _LINES - 1]
        for n, line in enumerate([*lines, f"{numbers}  {panel.name}"]):
            # The built-in font may lack other letters than Latin ones; TensorBoard and the report show all.
            text = line.encode("latin-1", "replace").decode("latin-1")
            draw.text((_GAP, top + side_y + 2 + n * _LINE), text, fill="black")
    return np.asarray(page)
