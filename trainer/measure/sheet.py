"""A contact sheet: held-out samples and the model's predictions in one picture."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from trainer.measure.drawing import Picture, colour, ink, marked
from trainer.measure.panels import AnyPanel, ConversationPanel, Panel, Span
from trainer.measure.report import printable

_GAP = 6
_LINE = 14
_LINES = 3
_LETTER = 7
"""Width of a letter of a caption in pixels, more or less."""
_WORD = re.compile(r"\S{1,60} *| +")
"""A word, or a part of a long one that fits in a line."""
_LEAST_WIDTH = 800
_MOST_LINES = 24
"""Lines of text of a conversation."""


def contact_sheet(panels: Sequence[AnyPanel]) -> Picture:
    """Draw the panels below one another: (h, w, 3) uint8.

    Of an object: prompt, image, truth and prediction, then caption and numbers. Of a conversation: frames with their
    regions, with true and with predicted masks, then what was said, with the phrases in the colours of their masks, and
    numbers. One frame's pictures lie side by side, several frames in strips.

    Args:
        panels: at least one; pictures of one size.
    """
    drawn = [_of_conversation(panel) if isinstance(panel, ConversationPanel) else _of_object(panel) for panel in panels]
    width = max(part.width for part in drawn)
    page = Image.new("RGB", (width, sum(part.height for part in drawn)), "white")
    top = 0
    for part in drawn:
        page.paste(part, (0, top))
        top += part.height
    return np.asarray(page)


def _of_object(panel: Panel) -> Image.Image:
    side_y, side_x = panel.image.shape[:2]
    page = Image.new("RGB", (4 * (side_x + _GAP) + _GAP, side_y + _LINES * _LINE + 2 * _GAP), "white")
    predicted = None if panel.prediction is None else marked(panel.image, [panel.prediction])
    for column, picture in enumerate((panel.prompt, panel.image, marked(panel.image, [panel.truth]), predicted)):
        if picture is not None:
            page.paste(Image.fromarray(picture), (_GAP + column * (side_x + _GAP), _GAP))
    lines = textwrap.wrap(printable(panel.caption), page.width // _LETTER)[: _LINES - 1]
    for n, line in enumerate([*lines, f"{_numbers(panel)}  {panel.name}"]):
        _write(ImageDraw.Draw(page), _GAP, _GAP + side_y + 2 + n * _LINE, Span(line))
    return page


def _of_conversation(panel: ConversationPanel) -> Image.Image:
    strips = [pictures for _, pictures in panel.strips()]
    if len(panel.frames) == 1:
        strips = [[pictures[0] for pictures in strips]]
    widths = [sum(picture.shape[1] + _GAP for picture in strip) + _GAP for strip in strips]
    width = max([_LEAST_WIDTH, *widths])
    lines = [line for role, spans in panel.lines() for line in _wrapped([Span(f"{role}: "), *spans], width - 2 * _GAP)]
    lines = [*lines[:_MOST_LINES], [Span(f"{_numbers(panel)}  {panel.kind}  {panel.name}")]]
    height = sum(strip[0].shape[0] + _GAP for strip in strips) + len(lines) * _LINE + 3 * _GAP
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    top = _GAP
    for strip in strips:
        left = _GAP
        for picture in strip:
            page.paste(Image.fromarray(picture), (left, top))
            left += picture.shape[1] + _GAP
        top += strip[0].shape[0] + _GAP
    for line in lines:
        x: float = _GAP
        for span in line:
            x = _write(draw, x, top, span)
        top += _LINE
    return page


def _wrapped(spans: Sequence[Span], width: int) -> Iterator[list[Span]]:
    """Split spans at spaces into lines of at most `width` pixels."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    line: list[Span] = []
    end: float = 0
    for span in spans:
        for word in _WORD.findall(printable(span.text)):
            length = draw.textlength(_drawable(word))
            if end + length > width and line:
                yield line
                line = []
                end = 0
            line.append(Span(word, span.number))
            end += length
    yield line


def _write(draw: ImageDraw.ImageDraw, x: float, y: int, span: Span) -> float:
    """Write a span at a place, on its colour if it has one; return where it ends."""
    text = _drawable(span.text)
    end = x + draw.textlength(text)
    if span.number is not None:
        draw.rectangle((x, y, end, y + _LINE - 2), fill=colour(span.number))
    draw.text((x, y), text, fill="black" if span.number is None else ink(span.number))
    return end


def _drawable(text: str) -> str:
    """Return `text` without what the built-in font may lack; TensorBoard's texts and the report show all letters."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _numbers(panel: AnyPanel) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in panel.values.items() if value == value)
