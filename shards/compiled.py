"""The compiled part of reading, `shards/_decode.c`: of sound members bit-equal to the Python way in `shards/codec.py`.

Where it is not compiled, or is switched off, the Python way is used. What the compiled part leaves undone is done in
Python, which says what is wrong. Of a damaged zstd frame two versions of zstd, the system's and Python's, may make
different bits, or only one of them an error: the CRC-32 of the sample tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_INTERFACE = 4
"""Raised together with the C code's where functions of one would not fit the other."""
try:
    from shards import _decode as _compiled

    if getattr(_compiled, "INTERFACE", 0) != _INTERFACE:  # compiled from another release's source
        _compiled = None  # type: ignore[assignment]
except ImportError:  # no compiler
    _compiled = None  # type: ignore[assignment]

PICTURE = 0
PACKED = 1
MASK = 2
PACKED_UNION = 3
MASK_UNION = 4
CELLS = 5
COPY = 6

Job: TypeAlias = tuple[int, Any, Any, int, bytes | None, bytes | None]
"""Kind, the bytes of a member, a contiguous array for the result, side of a picture or position of an object, header of
an npy, and table of normalised values. `shards.codec` makes them."""
Row: TypeAlias = tuple[int, list[int], bytes | None, list[memoryview], tuple[int, ...]]
"""A row of tensors and what is decoded to it: the row, positions of objects, header of their cells, members, and the
number of each tensor's member; -1 for nothing."""
_loops: Any = _compiled


def is_compiled() -> bool:
    """Return whether the compiled part is there and not switched off."""
    return _loops is not None


def left_undone(jobs: Sequence[Job]) -> Sequence[int]:
    """Do jobs in one call without the interpreter's lock; return the positions of those that Python has to do."""
    return range(len(jobs)) if _loops is None else _loops.run(jobs)


def run(jobs: Sequence[Job]) -> bool:
    """Do jobs in one call without the interpreter's lock; return whether none is left."""
    return _loops is not None and not _loops.run(jobs)


def left_of_rows(parts: tuple[Job, ...], rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Decode rows of tensors in one call without the interpreter's lock.

    Args:
        parts: for each tensor a job without data, whose array is the tensor.

    Returns:
        The position in `rows` and the number of the part of what Python has to do.

    Raises:
        ValueError: a row that does not fit the tensors.
    """
    if _loops is None:
        return [(at, part) for at, row in enumerate(rows) for part, number in enumerate(row[4]) if number >= 0]
    left: list[tuple[int, int]] = _loops.run_rows(parts, rows)
    return left


def exact_members(
    view: memoryview,
    offset: int,
    size: int,
    key: bytes,
    rests: tuple[bytes, ...],
    begins: tuple[bytes, ...],
    blank: bytes,
) -> list[memoryview] | None:
    """See `shards.archive.MappedTar.exact_members`."""
    found: list[memoryview] | None = _loops.exact_members(view, offset, size, key, rests, begins, blank)
    return found


def shuffled(numbers: Sequence[int], salt: int) -> list[int]:
    """See `trainer.data.choice.shuffled`."""
    order: list[int] = _loops.shuffled(numbers, salt)
    return order


def block_sums(picture: NDArray[np.uint8], blocks: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]] | None:
    """Return the sums of blocks x blocks equal parts of each plane, and each plane's lowest and highest value.

    (3, S, S) -> (3, blocks, blocks) and (3, 2). None where numpy has to do it.
    """
    sums = np.empty((3, blocks, blocks), np.uint32)
    ends = np.empty((3, 2), np.uint8)
    fits = _loops is not None and picture.flags.c_contiguous and picture.shape[1] // blocks <= 257
    return (sums, ends) if fits and _loops.block_sums(picture, picture.shape[1], blocks, sums, ends) else None


def filtered(picture: NDArray[np.uint8], is_gradient: bool, out: NDArray[np.uint8]) -> bool:
    """Filter (3, S, S) as `shards.codec.encode_picture` does; return whether it is done, and numpy has not to do it."""
    fits = _loops is not None and picture.flags.c_contiguous and picture.ndim == 3 and len(picture) == 3
    return fits and bool(_loops.filtered(picture, picture.shape[1], is_gradient, out))


Steps: TypeAlias = NDArray[np.int64]


def shrunk(
    bits: NDArray[np.uint8], rows: Steps, first_rows: Steps, columns: Steps, first_columns: Steps
) -> NDArray[np.bool_] | bool | None:
    """Return the mask that packed bits were enlarged from, see `shards.same_region.original_mask`.

    Args:
        bits: (S, S // 8).
        rows, columns: (S,), the row or column of the original that each one of the enlarged mask shows.
        first_rows, first_columns: (H,) and (W,), the first of the enlarged mask that shows each one of the original.

    Returns:
        (H, W); False where they were enlarged from none; None where numpy has to do it.
    """
    if _loops is None or not bits.flags.c_contiguous:
        return None
    out = np.empty((len(first_rows), len(first_columns)), np.bool_)
    found: bool | None = _loops.shrunk(bits, rows, first_rows, columns, first_columns, out.view(np.uint8))
    return out if found else found


@contextmanager
def python_alone() -> Iterator[None]:
    """Read in Python alone inside the block, in all threads: to compare both ways."""
    global _loops
    before = _loops
    _loops = None
    try:
        yield
    finally:
        _loops = before
