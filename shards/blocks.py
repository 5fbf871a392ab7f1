"""Sums and means over equal square blocks of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards import compiled

Sums = NDArray[np.uint32]
Ends = NDArray[np.uint8]


def sum_blocks(picture: NDArray[np.uint8], blocks: int) -> tuple[Sums, Ends]:
    """Return the sums of blocks x blocks equal parts of each plane, and each plane's lowest and highest value.

    (3, S, S) uint8 -> (3, blocks, blocks) and (3, 2), in one pass where `shards.compiled` has its
    loops. `blocks` divides S; a block has at most 257 x 257 pixels.
    """
    if found := compiled.block_sums(picture, blocks):
        return found
    side = picture.shape[1] // blocks
    rows = picture.reshape(3, blocks, side, -1).sum(axis=2, dtype=np.uint16)
    sums = rows.reshape(3, blocks, blocks, side).sum(axis=3, dtype=np.uint32)
    return sums, np.stack([picture.min(axis=(1, 2)), picture.max(axis=(1, 2))], axis=1)


def block_means(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Average blocks of `side` x `side` pixels, half rounded up: (3, S, S) -> (S // side, S // side, 3).

    What no whole block covers, right and below, is left out.
    """
    count = picture.shape[1] // side
    sums, _ = sum_blocks(np.ascontiguousarray(picture[:, : count * side, : count * side]), count)
    means = (sums + side * side // 2) // (side * side)
    return means.astype(np.uint8).transpose(1, 2, 0).copy()
