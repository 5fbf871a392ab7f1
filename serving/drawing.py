"""Content of the page: masks over the picture, and answers with their phrases in the colours of their masks."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from PIL import Image

from pipeline.resize import Bool, UInt8
from trainer.measure.drawing import colour, ink, marked

if TYPE_CHECKING:
    from inference.chat import Phrase, Reply

_SIDE = 1024
"""Longest side of a picture on the page, in pixels."""


def step_of(height: int, width: int) -> int:
    """Return the side of the square of a picture's pixels that is one pixel on the page."""
    return math.ceil(max(height, width) / _SIDE)


def shrunk(picture: UInt8, step: int) -> UInt8:
    """Return the means of a picture's squares of `step` x `step` pixels: (H, W, 3) -> (H // step, W // step, 3).

    A side shorter than `step` keeps one pixel.
    """
    height, width = (max(side // step, 1) for side in picture.shape[:2])
    whole = picture[: height * step, : width * step]
    if whole.shape[:2] != (height * step, width * step):
        return whole[::step, ::step]
    means = whole.reshape(height, step, width, step, 3).mean((1, 3))
    return means.round().astype(np.uint8)


def shrunk_mask(mask: Bool, step: int) -> Bool:
    """Return a mask (H, W) at the size of `shrunk`: true where one of the square's pixels is."""
    height, width = (max(side // step, 1) for side in mask.shape)
    whole = mask[: height * step, : width * step]
    if whole.shape != (height * step, width * step):
        return whole[::step, ::step]
    return np.asarray(whole.reshape(height, step, width, step).any((1, 3)))


def grown_mask(mask: Bool, step: int, height: int, width: int) -> Bool:
    """Return a mask at the size of `shrunk` as one of a picture (height, width); its last rows are repeated."""
    grown = mask.repeat(step, 0).repeat(step, 1)[:height, :width]
    return np.pad(grown, ((0, height - grown.shape[0]), (0, width - grown.shape[1])), "edge")


def strokes(layer: UInt8, height: int, width: int) -> Bool | None:
    """Return where a layer (h, w, 4) of the brush is painted, as (height, width); None where nothing is.

    A layer of another size is taken at the pixel that lies below each pixel's place.
    """
    painted = layer[..., 3] > 0 if layer.ndim == 3 and layer.shape[2] == 4 else np.zeros(layer.shape[:2], np.bool_)
    if not painted.any():
        return None
    rows = np.arange(height) * painted.shape[0] // height
    columns = np.arange(width) * painted.shape[1] // width
    found: Bool = painted[rows][:, columns]
    return found if found.any() else None


def overlay(shown: UInt8, masks: Sequence[Bool], numbered: bool = False) -> UInt8:
    """Return a picture (h, w, 3) with masks (h, w) in the colours of their numbers; unchanged without masks."""
    return marked(shown, masks, numbered) if any(mask.any() for mask in masks) else shown


def dotted(picture: UInt8, places: Sequence[tuple[int, int]], labels: Sequence[bool]) -> UInt8:
    """Return a picture (h, w, 3) with a dot at each place (x, y): white where its label holds, else black."""
    drawn = picture.copy()
    for (x, y), label in zip(places, labels, strict=True):
        for radius, value in ((5, 0 if label else 255), (3, 255 if label else 0)):
            drawn[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = value
    return drawn


def save(picture: UInt8, folder: Path) -> Path:
    """Write a picture into a folder under a name that cannot be guessed."""
    path = folder / f"{uuid4().hex}.jpg"
    Image.fromarray(picture).save(path, quality=92)
    return path


def question_html(text: str, regions: Path | None) -> str:
    """Return a question as HTML, with the picture of its regions."""
    return f'<div class="question">{_lines(text)}{_image(regions, "the marked regions")}</div>'


def answer_html(reply: Reply, shown: Path | None) -> str:
    """Return an answer as HTML: each phrase in the colour of its masks, then the picture or the video with them."""
    text = coloured(reply.plain, reply.phrases) or "<i>(no words)</i>"
    nameless = [n for n, phrase in enumerate(reply.phrases) if phrase.start == phrase.end and phrase.numbers]
    chips = " ".join(_mark(n, f"mask {n + 1}") for n in nameless)
    if shown is not None and shown.suffix == ".mp4":
        picture = f'<video controls loop muted playsinline src="{_address(shown)}"></video>'
    else:
        picture = _image(shown, "the masks over the picture")
    return f'<div class="answer"><p>{text}</p>{f"<p>{chips}</p>" if chips else ""}{picture}</div>'


def streaming_html(question: str, text: str) -> str:
    """Return a question and the part of its answer that is there."""
    return f'{question}<div class="answer" aria-busy="true"><p>{_lines(text)} &hellip;</p></div>'


def coloured(plain: str, phrases: Sequence[Phrase]) -> str:
    """Return a text as HTML in which each phrase with masks has the colour of its number."""
    parts = []
    end = 0
    for number, phrase in enumerate(phrases):
        if phrase.start >= end and phrase.end > phrase.start and phrase.numbers:
            parts += [_lines(plain[end : phrase.start]), _mark(number, plain[phrase.start : phrase.end])]
            end = phrase.end
    return "".join([*parts, _lines(plain[end:])])


def _mark(number: int, text: str) -> str:
    red, green, blue = colour(number)
    return f'<mark style="background: rgb({red}, {green}, {blue}); color: {ink(number)}">{_lines(text)}</mark>'


def _image(path: Path | None, what: str) -> str:
    return "" if path is None else f'<img src="{_address(path)}" alt="{what}">'


def _address(path: Path) -> str:
    return f"gradio_api/file={html.escape(str(path))}"


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
