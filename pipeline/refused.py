"""Add inputs that are known to be bad when they are found; they go to the ledger like all other bad inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.records import RecordsWriter
from shards.errors import BadInput

_KEY = "refused input"


def refuse(records: RecordsWriter, path: str, error: BadInput, size: int = 0) -> None:
    """Add an input as bad for the reason of `error`; one that was added before becomes bad."""
    records.add(path, size)
    records.attach(path, {_KEY: {"what": error.what, "met": error.met, "wanted": error.wanted, "do": error.do}})


def raise_refused(parts: Iterable[Any]) -> None:
    """Raise the `BadInput` that an input was refused for, if it was. Call it first in a source's `load`."""
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get(_KEY), dict):
            raise BadInput(**part[_KEY])
