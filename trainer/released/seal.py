"""The CRC-32 of a safetensors file in its header, so that a flipped bit in the weights of an export is found.

`file_crc32` in the header's `__metadata__` is ten digits: the CRC-32 of the whole file with zeros in place of these
digits. Tools that save the tensors again leave the key out; then nothing is compared.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.checksum import crc32
from shards.errors import UserError
from shards.regular_file import open_regular

_KEY = "file_crc32"
_BLANK = "0" * 10
UNSEALED = {_KEY: _BLANK}
"""Metadata of a file before `seal`."""
_DIGITS = re.compile(rb'"%s":"([0-9]{10})"' % _KEY.encode())
_PIECE = 16 << 20  # bytes
_MOST_HEADER = 100_000_000  # bytes, as of safetensors itself


def seal(path: Path) -> None:
    """Write the checksum into a file that was saved with the metadata `UNSEALED`. Raises `OSError`."""
    offset, _, checksum = _checksum(path) or (0, 0, 0)
    if offset:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"%010d" % checksum)


def check_seal(path: Path) -> None:
    """Raise `UserError` where the file differs from its checksum, `OSError` where it cannot be read."""
    found = _checksum(path)
    if found is None:
        return
    _, stored, computed = found
    if computed != stored:
        raise UserError(
            "CRC-32 of the file",
            where=str(path),
            met=str(computed),
            wanted=f"{stored}, as in its header",
            do="it has changed since it was written: take another copy of it",
        )


def _checksum(path: Path) -> tuple[int, int, int] | None:
    """Return the offset of the digits, their number, and the checksum of the file; None without digits."""
    with open_regular(path) as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), _MOST_HEADER))
        if (digits := _DIGITS.search(header)) is None:
            return None
        begin, end = digits.span(1)
        checksum = crc32(length + header[:begin] + _BLANK.encode() + header[end:])
        while piece := file.read(_PIECE):
            checksum = crc32(piece, checksum)
    return len(length) + begin, int(digits[1]), checksum
