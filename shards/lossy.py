"""Pictures as JPEG: smaller, and not bit-equal to the recipe. What is lost is measured when they are stored.

Quality 95 without subsampling of colour (4:4:4), baseline, through Pillow: the same bytes with the same version of it.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import BadShard

UInt8 = NDArray[np.uint8]

QUALITY = 95
EXACT = 120.0
"""PSNR in dB of a picture that lost nothing, which would be infinite. A single value that is 1 off gives 113."""
ROUNDED = 0.005
"""Rounding error in dB of a recorded PSNR, which has two decimals."""
JPEG = b"\xff\xd8\xff"
"""First bytes of a JPEG."""


@dataclass(frozen=True)
class Psnr:
    """Peak signal-to-noise ratio of the pictures of some samples, in dB."""

    min: float
    """Lowest PSNR of a picture."""
    mean: float
    """Mean of the pictures' PSNR."""

    def __str__(self) -> str:
        return f"PSNR {self.min:.2f} dB at least, {self.mean:.2f} on average"

    @classmethod
    def summarise(cls, ratios: Iterable[float]) -> Psnr | None:
        """Return minimum and mean of the pictures' PSNR in dB; None where there are no pictures."""
        least = math.inf
        total = 0.0
        count = 0
        for ratio in ratios:
            least = min(least, ratio)
            total += ratio
            count += 1
        return cls(least, round(total / count, 2)) if count else None

    @classmethod
    def from_json(cls, value: Any) -> Psnr | None:
        """Return the value whose `asdict` is `value`, None for None; raises `TypeError` on anything else."""
        if value is None:
            return None
        if not isinstance(value, dict) or value.keys() != {"min", "mean"} or not all(map(is_ratio, value.values())):
            raise TypeError(f"psnr: {str(value)[:60]!r}")
        return cls(float(value["min"]), float(value["mean"]))


def is_ratio(value: Any) -> bool:
    """Return whether a value of a JSON can be the PSNR of a picture."""
    return type(value) in (int, float) and 0 <= value <= EXACT


def recorded_psnr(meta: dict[str, Any], pictures: Iterable[object], lossy: bool) -> list[float]:
    """Return the PSNR in dB of each picture, as recorded in the sample's JSON; [] for a lossless set.

    Args:
        pictures: fields of the pictures.
        lossy: whether the set is lossy.

    Raises:
        BadShard: the JSON does not record what it must. A lossy sample without its mark would pass for an exact one.
    """
    recorded = meta.get("psnr", {})
    expected = {str(field) for field in pictures} if lossy else set()
    if not isinstance(recorded, dict) or recorded.keys() != expected or not all(map(is_ratio, recorded.values())):
        kind = f"a PSNR for {', '.join(sorted(expected))}" if lossy else "none: the manifest tells of no loss"
        raise BadShard("PSNR in the JSON", met=str(recorded)[:80], wanted=kind)
    return [float(ratio) for ratio in recorded.values()]


def psnr(stored: UInt8, exact: UInt8) -> float:
    """Return 10 log10(255^2 / mean squared error) of two uint8 arrays of one shape, in dB to two decimals.

    At most `EXACT`.
    """
    difference = stored.astype(np.int16) - exact
    squares = float(np.einsum("i,i->", *[difference.ravel().astype(np.int64)] * 2))
    return round(10 * math.log10(255**2 * exact.size / squares), 2) if squares else EXACT


def is_jpeg(data: bytes | memoryview) -> bool:
    """Return whether the bytes of a picture are a JPEG."""
    return bytes(data[: len(JPEG)]) == JPEG


def encode_jpeg(picture: UInt8) -> bytes:
    """Encode (3, S, S) uint8 RGB as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    rgb = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    rgb.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def decode_jpeg(data: bytes | memoryview, size: int, out: UInt8 | None = None) -> UInt8:
    """Decode a JPEG to (3, size, size) uint8 RGB, into `out` if given.

    Raises:
        BadShard: not a baseline JPEG of `size` x `size` in RGB, which is checked before a pixel is decoded; or broken.
    """
    from PIL import Image

    expected = f"a baseline JPEG, {size} x {size}, RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused below
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if image.format != "JPEG" or image.size != (size, size) or image.mode != "RGB" or "progressive" in image.info:
            progressive = "progressive " if "progressive" in image.info else ""
            kind = f"{progressive}{image.format}, {image.size[0]} x {image.size[1]}, {image.mode}"
            raise BadShard("JPEG of another kind", met=kind, wanted=expected)
        planes = np.asarray(image).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadShard("broken JPEG", met=str(error), wanted=expected) from None
    if out is None:
        return np.ascontiguousarray(planes)
    out[...] = planes
    return out
