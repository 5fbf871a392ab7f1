"""A mask, stored as the smallest rectangle around its pixels: most objects are far smaller than their picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import masks as _masks

Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask (H, W) bool. Numpy takes it for the whole array; `shape` and `any` are an array's."""

    shape: tuple[int, int]
    """(H, W)."""
    top: int
    """Row of the whole mask in which `pixels` begin."""
    left: int
    """Column of the whole mask in which `pixels` begin."""
    pixels: Bool
    """(h, w) bool, with a set pixel in each outer row and column; (0, 0) where the mask is empty. Stored by rows or by
    columns."""

    @classmethod
    def from_array(cls, mask: Bool | Mask) -> Mask:
        """Return the mask of a whole array (H, W) bool, which is copied; a `Mask` as it is."""
        if isinstance(mask, Mask):
            return mask
        height, width = mask.shape
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return cls.empty(height, width)
        top = int(rows[0])
        left = int(columns[0])
        return cls((height, width), top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1].copy("K"))

    @classmethod
    def empty(cls, height: int, width: int) -> Mask:
        """Return the mask (height, width) without a pixel."""
        return cls((height, width), 0, 0, np.zeros((0, 0), np.bool_))

    @classmethod
    def from_run_lengths(cls, counts: bytes, height: int, width: int) -> Mask | None:
        """Return the mask (height, width) of COCO's compressed run lengths.

        None where they are broken, or do not fill the picture; and where the compiled loop is missing.
        """
        found = _masks and _masks.crop(counts, height, width)
        if not found:
            return None
        top, left, bottom, right, columns = found
        pixels = np.frombuffer(columns, np.bool_).reshape(right - left, bottom - top).T
        return cls((height, width), top, left, pixels)

    def any(self) -> bool:
        """Return whether a pixel is set."""
        return self.pixels.size > 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.zeros(self.shape, np.bool_ if dtype is None else dtype)
        height, width = self.pixels.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return whole
