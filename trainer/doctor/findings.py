"""What a check before a run finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line: green, yellow or red."""

    level: Literal["ok", "warn", "fail"]
    check: str
    """What was looked at."""
    said: str
    """What was found; where it is not well, what to do about it."""


def ok(check: str, said: str) -> Finding:
    return Finding("ok", check, said)


def warn(check: str, said: str) -> Finding:
    return Finding("warn", check, said)


def fail(check: str, said: str) -> Finding:
    return Finding("fail", check, said)


def size(count: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
