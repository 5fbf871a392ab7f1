"""The CRC-32 of a safetensors file in its own header, so that a flipped bit in the weights of an export is found.

Under `file_crc32` in the header's `__metadata__` stand ten digits: the CRC-32 of the whole file, with zeros in their
place. Who saves the tensors anew, with other values or other tools, leaves them out, and then nothing is compared.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.checksum import crc32
from shards.errors import UserError
from shards.regular_file import open_regular

_KEY, _BLANK = "file_crc32", "0" * 10
UNSEALED = {_KEY: _BLANK}
"""Metadata to save a file with that is then sealed."""
_DIGITS = re.compile(rb'"%s":"([0-9]{10})"' % _KEY.encode())
_PIECE = 16 << 20  # bytes
_MOST_HEADER = 100_000_000  # bytes, as of safetensors itself


def seal(path: Path) -> None:
    """Put the checksum into a file that was saved with the metadata `UNSEALED`. Raises `OSError`."""
    place, _, checksum = _measured(path) or (0, 0, 0)
    if place:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"%010d" % checksum)


def check_seal(path: Path) -> None:
    """Raise `UserError` where the file has a checksum and is not what it says, `OSError` where it cannot be read."""
    found = _measured(path)
    if found is None:
        return
    _, wanted, met = found
    if met != wanted:
        do = "it has changed since it was written: take another copy of it"
        raise UserError(
            "CRC-32 of the file", where=str(path), met=str(met), wanted=f"{wanted}, as in its header", do=do
        )


def _measured(path: Path) -> tuple[int, int, int] | None:
    """Where the digits stand, the number there, and the checksum of the file; None where there are none."""
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
