"""The weights of Pillow's antialiased filters: how much each pixel of the original counts in one of the result."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Filter = Literal["bilinear", "bicubic"]
Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]

BITS = 22  # a weight is a multiple of 2 ** -BITS


@lru_cache(maxsize=64)
def weights(length: int, size: int, kind: Filter) -> tuple[Int32, Int32, Int32]:
    """Return how a line of `length` pixels is resized to `size` pixels.

    The operations have Pillow's order, so that every bit is the same: the filter is centred on the result's pixel,
    stretched by `length / size` where that is more than 1, and its samples are divided by their sum.

    Returns:
        (start, count, weight), int32: (size,), (size,), (size, max(count)). Pixel i of the result is the sum of
        `count[i]` pixels from `start[i]` on, times `weight[i]` in units of 2 ** -22.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    reach = (1 if kind == "bilinear" else 2) * stretch
    centre = (np.arange(size) + 0.5) * scale
    start = np.maximum((centre - reach + 0.5).astype(np.int32), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int32), length) - start
    place = np.arange(count.max())
    distance = (place + start[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)
    sampled = _bilinear(np.abs(distance)) if kind == "bilinear" else _bicubic(np.abs(distance))
    sampled[place >= count[:, None]] = 0
    shares = sampled / np.cumsum(sampled, axis=1)[:, -1:] * (1 << BITS)
    return start, count, np.trunc(shares + np.copysign(0.5, shares)).astype(np.int32)


def _bilinear(x: Float64) -> Float64:
    return np.where(x < 1, 1 - x, 0.0)


def _bicubic(x: Float64) -> Float64:
    """Cubic convolution with a = -0.5 (Keys 1981, "Cubic convolution interpolation for digital image processing")."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
