"""Sizes in bytes as text."""

from __future__ import annotations

import re

from shards.errors import UserError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MOST = 2.0**63
"""Bytes; more than file systems and counters can hold is a typing error."""


def parse_size(text: str, where: str = "") -> int:
    """Return the bytes of a size such as 1GB, 500MB or 64MiB; raises `UserError` with `where` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper(), 0) if match else 0
    if match is None or not 0 < float(match[1]) * unit < _MOST:
        raise UserError("not a size", where=where, met=repr(text), wanted="a size such as 1GB, 500MB or 64MiB")
    return int(float(match[1]) * unit)


def size_text(count: float) -> str:
    """Return a size such as "1.6 TB", in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
