"""What a check before a run finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warn", "fail"]
    check: str
    """Name of the check, such as "data"."""
    text: str
    """What was found and, unless all is well, what to do about it."""


def ok(check: str, text: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding("ok", check, text)


def warn(check: str, text: str) -> Finding:
    """Return a finding with which a run starts, but may not do what was meant."""
    return Finding("warn", check, text)


def fail(check: str, text: str) -> Finding:
    """Return a finding with which a run would not start, or would not end."""
    return Finding("fail", check, text)


def size(count: float) -> str:
    """Return bytes for people, such as 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
