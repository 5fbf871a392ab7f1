"""CRC-32 as zlib, gzip and PNG define it, and checksums of files.

`isal` computes it with the processor's carry-less multiplication, at seven times zlib's rate: with zlib's the check of
raw pictures beside the first read would take a tenth of ten epochs. Where it is not installed, zlib's is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

try:
    from isal.isal_zlib import crc32
except ImportError:  # not needed to read a set
    from zlib import crc32

__all__ = ["CHECKS", "Check", "Copies", "crc32", "crc32_while_copying", "file_sha256"]

Copies = Sequence[tuple[NDArray[Any], NDArray[np.uint8]]]
"""(target, source) pairs of contiguous arrays of one size; the sources are views of the checked data."""
_PIECE = 256 << 10  # bytes; small enough to stay in the processor's L2 cache between checksum and copy

Check = Literal["first", "always", "never"]
"""When the bytes of a sample are compared with their CRC-32: at a process's first read, at every read, or never."""
CHECKS: tuple[Check, ...] = get_args(Check)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_while_copying(data: memoryview, copies: Copies) -> int:
    """Return the CRC-32 of `data`, and copy each source of `copies` to its target on the way.

    A piece that was just read is still in the processor's cache. So the checksum adds a fifth to the time of the
    copies, and two thirds when it is computed separately.
    """
    begin = _address(np.frombuffer(data, np.uint8))
    checksum = 0
    done = 0
    for target, source in sorted(copies, key=lambda copy: _address(copy[1])):
        start = _address(source) - begin
        if start < done:  # this part is copied to two targets
            np.copyto(target, source)
            continue
        checksum = crc32(data[done:start], checksum)
        flat = source.reshape(-1)
        out = target.reshape(-1)
        for first in range(0, flat.size, _PIECE):
            piece = flat[first : first + _PIECE]
            checksum = crc32(piece, checksum)
            out[first : first + _PIECE] = piece
        done = start + flat.size
    return crc32(data[done:], checksum)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
