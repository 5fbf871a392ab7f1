"""Read the values of mask files, one whole number per pixel: ids of objects, or the two values of one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pictures import open_image
from shards.errors import BadInput

Values = NDArray[Any]
_VOC_EDGE = (224, 224, 192)  # the colour of 255 in the palette of Pascal VOC and DAVIS: pixels of no object
_VOC_VOID = 255
_LOSSY = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"}
_MIDDLE = 127
# of a lossy mask: values up to _LOW are off, from _HIGH on are on
_LOW = 63
_HIGH = 192
_WANTED = "ids in one channel of whole numbers: PNG or TIFF, grey or palette"


def values_of(image: Image.Image, *, soft: bool = False) -> Values:
    """Return the values of a mask picture: (H, W) uint8, uint16 or int64, none below 0.

    Grey and palettes of any depth are returned unchanged. Colours are taken only where all channels are equal, and
    alpha only where it adds nothing to the values. A lossy format (JPEG) is taken only where it is black and white: 0
    and 255.

    Args:
        soft: the mask is of one object: in a lossy format, grey is cut at half.

    Raises:
        BadInput: anything else; a file does not state which number a colour stands for.
    """
    mode = image.mode
    values = np.asarray(image)
    if mode == "1":
        return (values.view(np.uint8) != 0).view(np.uint8)  # a True may be stored as any byte: Pillow's is 255
    if values.ndim == 3:
        values = _one_channel(values, mode)
    elif mode == "F":
        values = _whole(values)
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise BadInput("no mask", met=f"values from {values.min()} on", wanted="whole numbers >= 0")
    if image.format in _LOSSY:
        values = _two_valued(values, image.format or "", soft)
    return values


def read_values(file: Path) -> Values:
    """Return the values of the mask file at `file`; raises `BadInput` as `values_of` and `open_image` do."""
    return _values_at(open_image(file), file)


def read_ids(file: Path, void: int | None) -> tuple[Values, list[int]]:
    """Return the values of a mask of several objects, and the ids in it, ascending.

    0 is the background. Pixels of `void` are no object (see `void_of`).
    """
    image = open_image(file)
    values = _values_at(image, file)
    numbers = distinct(values)
    return values, [number for number in numbers if number not in (0, void_of(image, numbers, void))]


def void_of(image: Image.Image, numbers: list[int], void: int | None) -> int | None:
    """Return the value, other than 0, of pixels that belong to no object; None where there is none.

    `void`, if it is given; else 255 of a palette that shows it in Pascal VOC's colour for such pixels, where the mask
    holds other `numbers` too.
    """
    if void is not None or image.mode != "P" or not {*numbers} - {0, _VOC_VOID}:
        return void
    palette = image.getpalette("RGB") or []
    is_voc = tuple(palette[3 * _VOC_VOID : 3 * _VOC_VOID + 3]) == _VOC_EDGE
    return _VOC_VOID if is_voc else None


def distinct(values: Values) -> list[int]:
    """Return the different values, ascending."""
    if values.dtype == np.uint8:
        counts = Image.fromarray(np.atleast_2d(values)).histogram() if values.size else []  # faster than numpy's ways
        return [n for n, pixels in enumerate(counts) if pixels]
    return [int(n) for n in np.unique(values)]


def looks_like_edges(values: Values, ids: list[int]) -> bool:
    """Whether most ids, and two at least, fill no block of 2 x 2 pixels: grey edges of objects, not objects."""
    corner = values[1:, 1:]
    block = (corner == values[:-1, :-1]) & (corner == values[1:, :-1]) & (corner == values[:-1, 1:])
    thin = {*ids} - {*distinct(corner[block])}
    return len(thin) >= 2 and 2 * len(thin) > len(ids)


def _values_at(image: Image.Image, file: Path) -> Values:
    try:
        return values_of(image)
    except BadInput as error:
        raise error.at(str(file)) from None


def _one_channel(values: Values, mode: str) -> Values:
    """(H, W, C) -> (H, W): the value that all channels except alpha share."""
    if mode not in ("RGB", "RGBA", "LA", "PA", "RGBX"):
        raise BadInput("no mask", met=f"a picture of mode {mode}", wanted=_WANTED)
    grey = values[..., 0]
    colours = values[..., :3] if mode.startswith("RGB") else values[..., :1]
    if (colours != grey[..., None]).any():
        count = len(np.unique(colours.reshape(-1, 3) @ np.array([1, 256, 65536])))
        raise BadInput("a mask of colours", met=f"mode {mode}, {count} colours", wanted=_WANTED)
    if mode in ("RGBA", "LA", "PA"):
        inside = values[..., -1][grey != 0]
        outside = values[..., -1][grey == 0]
        if (inside != 255).any() or (len(outside) and (outside != outside[0]).any()):
            raise BadInput("a mask whose alpha differs from its values", met=f"mode {mode}", wanted=_WANTED)
    return np.ascontiguousarray(grey)


def _whole(values: Values) -> Values:
    whole = np.isfinite(values).all() and (values == np.floor(values)).all() and np.abs(values).max(initial=0) < 1 << 24
    if not whole:
        raise BadInput("no mask", met=f"mode F, {values.min()} to {values.max()}", wanted="whole numbers")
    return values.astype(np.int64)


def _two_valued(values: Values, kind: str, soft: bool) -> Values:
    """Return 0 and 255 for a mask that was black and white before lossy compression."""
    numbers = distinct(values)
    low, high = (_MIDDLE, _MIDDLE + 1) if soft else (_LOW, _HIGH)
    if numbers != [0] and (numbers[-1] < high or any(low < number < high for number in numbers)):
        raise BadInput(
            "a mask that was stored with losses",
            met=f"{kind} with {len(numbers)} values, {numbers[0]} to {numbers[-1]}",
            wanted=_WANTED,
            do="its ids are blurred: make it anew",
        )
    return np.where(values >= high, np.uint8(255), np.uint8(0))
