"""Rows of `pictures.parquet`: for each frame of a sample, a checksum and a perceptual hash of its picture.

Both are of the picture of 448 x 448 as the reader decodes it, before normalisation. `docs/OVERLAP.md` describes
the file.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from shards.blocks import sum_blocks
from shards.codec import UInt8
from shards.table_kind import Row, SampleContent, TableKind
from shards.table_list import PICTURES

PICTURE_COLUMNS: dict[str, str] = {
    "key": "string",
    "position": "int64",
    "frame": "int32",
    "pixels": "uint64",
    "hash": "uint64",
}
"""Columns and their types, in order."""
NO_STRUCTURE = 0
"""The perceptual hash of a picture of one colour, and of no other that was met: it tells no two pictures apart."""

_BLOCKS = 32
_SIDE = 8  # of the square of frequencies that are kept: 64 bits
_LUMA = np.array([77, 150, 29], np.int64)  # of 256: the weights of ITU-R BT.601
_SCALE = 1 << 13  # products stay below 2**60
_COSINES = np.array(
    [
        [round(_SCALE * math.cos(math.pi * (2 * n + 1) * k / (2 * _BLOCKS))) for n in range(_BLOCKS)]
        for k in range(1, _SIDE + 1)
    ],
    np.int64,
)
"""(8, 32): frequencies 1 to 8 of the DCT-II of 32 values. Without frequency 0, brightness has no effect."""


def picture_rows(content: SampleContent) -> list[Row]:
    """Return a row, with the values of `PICTURE_COLUMNS` in order, for each frame of a sample.

    The pictures of a lossy set count as they are decoded.

    Raises:
        BadShard: a picture cannot be decoded.
    """
    hashed = ((pixel_checksum(picture), perceptual_hash(picture)) for picture in content.pictures())
    return [(content.key, content.position, frame, *values) for frame, values in enumerate(hashed)]


def pixel_checksum(picture: UInt8) -> int:
    """Return the first 8 bytes of the BLAKE2b of the pixels (3, S, S) in C order, as a little-endian integer."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(picture).data).digest()[:8], "little")


def perceptual_hash(picture: UInt8) -> int:
    """Return 64 bits of which few differ between two versions of one picture: smaller, brighter, compressed.

    It is the hash by DCT of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
    section 3.2.1, of means of blocks: the DCT-II of 32 x 32 grey values, frequencies 1 to 8 in both directions, each
    compared with the median of the 64. Bit 8 y + x is set where the coefficient of frequencies (y + 1, x + 1) is larger
    than the mean of the 32nd and the 33rd in order; an equal one leaves it 0. All is done in integers, so that the bits
    are the same on every machine.

    Args:
        picture: (3, S, S) uint8 RGB, S a multiple of 32, at most 8192.
    """
    sums, _ = sum_blocks(picture, _BLOCKS)
    grey = np.tensordot(_LUMA, sums.astype(np.int64), 1)
    coefficients = (_COSINES @ grey @ _COSINES.T).ravel()
    low, high = np.partition(coefficients, (31, 32))[31:33]
    bits: NDArray[np.uint8] = np.packbits(2 * coefficients > low + high, bitorder="little")
    return int.from_bytes(bits.tobytes(), "little")


PICTURES_TABLE = TableKind(PICTURES, "pictures", PICTURE_COLUMNS, picture_rows, True, lambda manifest: None)
