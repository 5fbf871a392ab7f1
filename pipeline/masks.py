"""Masks (H, W) bool from all encodings: polygons, run lengths plain or compressed, pictures, arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from pipeline.cropped import Bool, Mask
from pipeline.mask_values import distinct, values_of, void_of
from shards.errors import BadInput

_MIN_NUMBERS = 6  # coordinates of a polygon: three corners
_MAX_OUTLINE = 1 << 20  # pixels: COCO's code takes memory for each pixel of an outline, inside the picture or not
_ENCODINGS = "polygons, or run lengths with their size"


def run_length_fault(run_lengths: Any, height: int, width: int) -> BadInput | None:
    """Return why `from_coco` refuses run lengths, without decoding them; None where it takes them."""
    try:
        _check_size(run_lengths, height, width)
        _check_counts(run_lengths["counts"], height, width)
    except BadInput as error:
        return error
    return None


def from_coco(segmentation: Any, height: int, width: int) -> Bool:
    """Decode a mask as `read_coco` does: (height, width) bool."""
    return np.asarray(read_coco(segmentation, height, width))


def read_coco(segmentation: Any, height: int, width: int) -> Mask:
    """Read a mask in one of COCO's three encodings, for a picture of `height` x `width`.

    The mask is decoded inside the rectangle around its pixels alone.

    A list of polygons is their union; polygons of fewer than three corners have no area and are left out. Run lengths
    must fill the picture exactly.

    Raises:
        BadInput: none of these encodings, run lengths for another size, or broken ones.
    """
    if segmentation is None or segmentation == []:
        missing = "no segmentation" if segmentation is None else "an empty list of polygons"
        raise BadInput("no mask", met=f"{missing}, as of a box alone", wanted=_ENCODINGS)
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(_numbers(polygon)) >= _MIN_NUMBERS]
        if not polygons:
            return Mask.empty(height, width)
        return _decode(coco.merge(coco.frPyObjects(polygons, height, width))["counts"], height, width)
    _check_size(segmentation, height, width)
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes) and (mask := Mask.from_run_lengths(_bytes(counts), height, width)):
        return mask
    counts = _check_counts(counts, height, width)
    if isinstance(counts, list):
        counts = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return _decode(counts, height, width)


def _check_size(segmentation: Any, height: int, width: int) -> None:
    """Raise `BadInput` unless `segmentation` has counts, and run lengths are for a picture of this size."""
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise BadInput("no mask", met=f"{type(segmentation).__name__}", wanted=_ENCODINGS)
    size = segmentation["size"]
    if not isinstance(size, list | tuple) or [*size] != [height, width]:
        raise BadInput("mask and picture differ in size", met=f"size {size}", wanted=f"[{height}, {width}]")


def _check_counts(counts: Any, height: int, width: int) -> Any:
    """Return the counts of run lengths, plain or compressed; raises `BadInput` unless they fill the picture."""
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            raise BadInput("broken run lengths", met="counts that are no numbers", wanted="whole numbers >= 0")
        total = sum(counts)
    elif isinstance(counts, str | bytes):
        total = int(_lengths(counts).sum())
    else:
        raise BadInput("no mask", met=f"counts of type {type(counts).__name__}", wanted="a list or a string")
    if total != height * width:
        raise BadInput("broken run lengths", met=f"{total} pixels", wanted=f"{height * width}")
    return counts


def has_pixels(segmentation: Any) -> bool:
    """Return whether run lengths, plain or compressed, hold a pixel, without decoding; False where they are broken."""
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, list):
        return any(isinstance(n, int) and n > 0 for n in counts[1::2])
    try:
        return isinstance(counts, str | bytes) and bool(_lengths(counts)[1::2].any())
    except BadInput:
        return False


def from_image(image: Image.Image, value: int | None = None, void: int | None = None) -> Bool:
    """Decode a mask stored as a picture: (H, W) bool.

    Args:
        image: as `values_of` reads it.
        value: an object's id; the mask is the pixels of this value. None where the picture holds one object. The mask
            is then all pixels that are not 0, in a palette and where there is only one value beside 0; otherwise, with
            grey edges, the pixels above half of the full range.
        void: value of pixels that belong to no object, see `void_of`.

    Raises:
        BadInput: as `values_of`; several values of which none is above half of the range.
    """
    values = values_of(image, soft=value is None)
    if value is not None:
        return np.asarray(values == value)
    if image.mode == "1":
        return values.view(np.bool_)
    numbers = distinct(values)
    void = void_of(image, numbers, void)
    if void in numbers:
        values = np.where(values == void, values.dtype.type(0), values)
        numbers = [number for number in numbers if number != void]
    if image.mode in ("P", "PA") or len([number for number in numbers if number]) <= 1:
        return np.asarray(values != 0)
    mask = from_array(values)
    if not mask.any():
        raise BadInput(
            "a mask of several values",
            met=", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else ""),
            wanted="one beside 0, or grey above half",
            do='give the object\'s id as "value"',
        )
    return mask


def from_array(values: NDArray[Any]) -> Bool:
    """Threshold an array (H, W), of bools or of numbers in 0..1, 0..255 or 0..65535, at half of its range."""
    if values.dtype == np.bool_:
        return values.view(np.uint8) != 0  # a True may be stored as any byte: Pillow's is 255
    if values.ndim != 2 or not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise BadInput("no mask", met=f"{values.dtype} {values.shape}", wanted="finite values >= 0, (H, W)")
    most = values.max(initial=0)
    top = next((top for top in (1, 255, 65535) if most <= top), None)
    if top is None:
        raise BadInput("no mask", met=f"values up to {most}", wanted="at most 1, 255 or 65535")
    return np.asarray(values > top / 2)


def _numbers(polygon: Any) -> list[float]:
    """Return a polygon's coordinates x, y, x, y, ...; raises `BadInput` where they are not finite, or too large."""
    try:
        numbers = np.array(polygon or [0.0, 0.0])
    except (ValueError, OverflowError):  # lists of unequal lengths, numbers beyond all bounds
        numbers = np.array("")
    flat = isinstance(polygon, list) and numbers.ndim == 1 and len(numbers) % 2 == 0
    if not flat or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise BadInput("broken polygon", met=str(polygon)[:60], wanted="a list of finite numbers: x, y, x, y, ...")
    ends = numbers.astype(np.float64).reshape(-1, 2)
    outline = np.abs(ends - np.roll(ends, 1, axis=0)).max(axis=1, initial=0).sum()
    if outline > _MAX_OUTLINE or np.abs(ends).max(initial=0) > _MAX_OUTLINE:
        raise BadInput("broken polygon", met=f"{outline:.0f} pixels around", wanted=f"at most {_MAX_OUTLINE}")
    return list(polygon)


def _lengths(counts: str | bytes) -> NDArray[np.int64]:
    """Decode compressed run lengths: lengths of off, on, off, ..., int64. Raises `BadInput` where they are broken.

    Each length is written in groups of five bits, the lowest first, as characters from "0" on; bit 5 means that more
    groups follow. From the fourth on, a length is written as its difference from the one before the last (COCO's
    maskApi.c).
    """
    codes = np.frombuffer(_bytes(counts), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise BadInput("broken run lengths", met=repr(counts[:40]), wanted="COCO's compressed run lengths")
    last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, np.diff([*starts, len(codes)]))
    if place.max() > 7:
        raise BadInput("broken run lengths", met=repr(counts[:40]), wanted="lengths of at most 40 bits")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    ends = np.flatnonzero(last)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    for first in (1, 2):  # lengths 1, 3, 5, ... and 2, 4, 6, ...: each but the first a difference
        values[first::2] = np.cumsum(values[first::2])
    if values.min() < 0:
        raise BadInput("broken run lengths", met=f"a length of {values.min()}", wanted="none below 0")
    return values


def _bytes(counts: str | bytes) -> bytes:
    # Not as "latin-1": it would turn a letter that it lacks into "?", which is a code of run lengths.
    return counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts


def _decode(counts: Any, height: int, width: int) -> Mask:
    if mask := Mask.from_run_lengths(counts, height, width):
        return mask
    try:
        decoded = coco.decode({"size": [height, width], "counts": counts})
        return Mask.from_array(np.asarray(decoded).view(np.bool_))
    except (ValueError, TypeError) as error:
        raise BadInput("broken run lengths", met=str(error), wanted="COCO's run lengths") from None
