"""CRC-32 as zlib, gzip and PNG define it, and checksums of files.

`isal` computes it with the processor's carry-less multiplication, at ten times zlib's rate: with zlib's the check of
raw pictures beside the first read would take a tenth of ten epochs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, get_args

from isal.isal_zlib import crc32

__all__ = ["CHECKS", "Check", "crc32", "file_sha256"]

Check = Literal["first", "always", "never"]
"""When a sample's bytes are compared with the CRC-32 that the index holds: at a process's first read of the sample, at
every read, or not at all."""
CHECKS: tuple[Check, ...] = get_args(Check)


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
