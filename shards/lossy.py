"""Pictures as JPEG: smaller, and no longer bit-equal to the recipe. Whoever stores them measures what was lost.

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
"""Stands for the PSNR of a picture that lost nothing; one value of a picture that is 1 off gives 113."""
ROUNDED = 0.005
"""How far a PSNR that is told may be from the one that was measured: it has two decimals."""
_START = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Psnr:
    """What the pictures of some samples lost: peak signal-to-noise ratios in dB, over all values of a picture."""

    min: float
    mean: float
    """Of the pictures' ratios."""

    def __str__(self) -> str:
        return f"PSNR {self.min:.2f} dB at least, {self.mean:.2f} on average"

    @classmethod
    def of(cls, ratios: Iterable[float]) -> Psnr | None:
        """Of pictures' ratios; None where there are none."""
        least, total, count = math.inf, 0.0, 0
        for ratio in ratios:
            least, total, count = min(least, ratio), total + ratio, count + 1
        return cls(least, round(total / count, 2)) if count else None

    @classmethod
    def from_json(cls, value: Any) -> Psnr | None:
        """What `asdict` made of it, or None of None; raises `TypeError` on anything else."""
        if value is None:
            return None
        if not isinstance(value, dict) or value.keys() != {"min", "mean"} or not all(map(is_ratio, value.values())):
            raise TypeError(f"psnr: {str(value)[:60]!r}")
        return cls(float(value["min"]), float(value["mean"]))


def is_ratio(value: Any) -> bool:
    """Whether a JSON's value can be the PSNR of a picture."""
    return type(value) in (int, float) and 0 <= value <= EXACT


def ratios_of(meta: dict[str, Any], pictures: Iterable[object], lossy: bool) -> list[float]:
    """What a sample's JSON says that its pictures lost: the PSNR of each, and nothing in a lossless set.

    Args:
        pictures: their fields.
        lossy: whether the sample is one of a lossy set.

    Raises:
        BadShard: it says otherwise. A sample that loses its mark on the way would pass for what it is not.
    """
    told, wanted = meta.get("psnr", {}), {str(field) for field in pictures} if lossy else set()
    if not isinstance(told, dict) or told.keys() != wanted or not all(map(is_ratio, told.values())):
        kind = f"a PSNR for {', '.join(sorted(wanted))}" if lossy else "none: the manifest tells of no loss"
        raise BadShard("PSNR in the JSON", met=str(told)[:80], wanted=kind)
    return [float(ratio) for ratio in told.values()]


def psnr(stored: UInt8, exact: UInt8) -> float:
    """10 log10(255^2 / mean squared error) of two uint8 arrays of one shape, in dB to two decimals; at most `EXACT`."""
    apart = stored.astype(np.int16) - exact
    squares = float(np.einsum("i,i->", *[apart.ravel().astype(np.int64)] * 2))
    return round(10 * math.log10(255**2 * exact.size / squares), 2) if squares else EXACT


def is_jpeg(data: bytes | memoryview) -> bool:
    """Whether the bytes of a picture are a JPEG's."""
    return bytes(data[: len(_START)]) == _START


def encode_jpeg(picture: UInt8) -> bytes:
    """Encode (3, S, S) uint8 RGB."""
    from PIL import Image

    file = io.BytesIO()
    rgb = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    rgb.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def decode_jpeg(data: bytes | memoryview, size: int, out: UInt8 | None = None) -> UInt8:
    """Decode to (3, size, size) uint8 RGB, into `out` where it is given.

    Raises:
        BadShard: not a baseline JPEG of `size` x `size` in RGB, which is known before a pixel is decoded; a broken one.
    """
    from PIL import Image

    wanted = f"a baseline JPEG, {size} x {size}, RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused below
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if image.format != "JPEG" or image.size != (size, size) or image.mode != "RGB" or "progressive" in image.info:
            progressive = "progressive " if "progressive" in image.info else ""
            met = f"{progressive}{image.format}, {image.size[0]} x {image.size[1]}, {image.mode}"
            raise BadShard("JPEG of another kind", met=met, wanted=wanted)
        planes = np.asarray(image).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadShard("broken JPEG", met=str(error), wanted=wanted) from None
    if out is None:
        return np.ascontiguousarray(planes)
    out[...] = planes
    return out
