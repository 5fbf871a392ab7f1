"""Masks and regions drawn onto pictures, in colours that colour-blind people tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66), (213, 94, 0))
"""The palette of Okabe and Ito (2008) without black."""
_EDGE = 2
"""Width of a mask's outline in pixels."""
_LABEL = 14
"""Height of a number in pixels."""


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of mask or phrase `number`, counted from 0."""
    return COLOURS[number % len(COLOURS)]


def ink(number: int) -> str:
    """Return the colour, black or white, of letters on `colour(number)`."""
    red, green, blue = colour(number)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "white"


def marked(image: Picture, masks: Sequence[Mask], numbered: bool = False) -> Picture:
    """Return `image` in grey with masks over it, each in its own colour with an outline.

    Nothing else has a colour, so a mask is seen on anything.

    Args:
        image: (h, w, 3).
        masks: (h, w) each.
        numbered: write the number of each mask, from 1, into it.
    """
    grey = image.mean(2, keepdims=True)
    out = np.broadcast_to(0.6 * grey + 80, image.shape).copy()
    for number, mask in sorted(enumerate(masks), key=lambda pair: -pair[1].sum()):  # none hides a smaller one
        out[mask] = 0.5 * grey[mask] + 0.5 * np.array(colour(number))
    for number, mask in enumerate(masks):
        out[mask & ~_eroded(mask, _EDGE)] = colour(number)
    drawn = Image.fromarray(out.clip(0, 255).astype(np.uint8))
    if numbered:
        for number, mask in enumerate(masks):
            if mask.any():
                _label(drawn, number, *_inside(mask))
    return np.asarray(drawn)


def _eroded(mask: Mask, pixels: int) -> Mask:
    """Return `mask` without the `pixels` outermost pixels; beyond the picture's border it goes on."""
    for _ in range(pixels):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _inside(mask: Mask) -> tuple[int, int]:
    """Return x and y of the mask's pixel that is nearest to its centre of mass."""
    y, x = mask.nonzero()
    nearest = ((x - x.mean()) ** 2 + (y - y.mean()) ** 2).argmin()
    return int(x[nearest]), int(y[nearest])


def _label(page: Image.Image, number: int, x: int, y: int) -> None:
    """Write a number, from 1, at a place."""
    draw = ImageDraw.Draw(page)
    text = str(number + 1)
    width = draw.textlength(text, font_size=_LABEL)
    left = min(max(x - width / 2, 2), page.width - width - 2)
    top = min(max(y - _LABEL / 2, 1), page.height - _LABEL - 2)
    draw.rectangle((left - 2, top - 1, left + width + 2, top + _LABEL + 1), fill=colour(number), outline=ink(number))
    draw.text((left, top - 2), text, fill=ink(number), font_size=_LABEL)
