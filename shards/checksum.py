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
"""(target, source) pairs; both contiguous and of one size, the sources views of the data that is checked."""
_PIECE = 256 << 10  # bytes that stay in the processor's second cache between their checksum and their copy

Check = Literal["first", "always", "never"]
"""When a sample's bytes are compared with the CRC-32 that the index holds: at a process's first read of the sample, at
every read, or not at all."""
CHECKS: tuple[Check, ...] = get_args(Check)


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_while_copying(data: memoryview, copies: Copies) -> int:
    """The CRC-32 of `data`; on the way each source among `copies` is copied to its target.

    A piece that was just checked is still in the processor's cache: so both together take a fifth more time than the
    copies alone, one after the other two thirds more.
    """
    begin = _address(np.frombuffer(data, np.uint8))
    checksum, done = 0, 0
    for target, source in sorted(copies, key=lambda copy: _address(copy[1])):
        start = _address(source) - begin
        if start < done:  # copied twice
            np.copyto(target, source)
            continue
        checksum = crc32(data[done:start], checksum)
        flat, out = source.reshape(-1), target.reshape(-1)
        for place in range(0, flat.size, _PIECE):
            piece = flat[place : place + _PIECE]
            checksum = crc32(piece, checksum)
            out[place : place + _PIECE] = piece
        done = start + flat.size
    return crc32(data[done:], checksum)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
