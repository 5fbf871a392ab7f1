"""Inputs that are known to be bad when they are found: they come to the ledger like any other bad input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.records import RecordsWriter
from shards.errors import BadInput

_KEY = "refused input"


def refuse(records: RecordsWriter, path: str, error: BadInput, size: int = 0) -> None:
    """Put down an input, or one that is put down already, as bad for the reason that `error` gives."""
    records.add(path, size)
    records.attach(path, {_KEY: {"what": error.what, "met": error.met, "wanted": error.wanted, "do": error.do}})


def raise_refused(parts: Iterable[Any]) -> None:
    """Raise the `BadInput` that an input was refused for, if it was; for the beginning of a source's `load`."""
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get(_KEY), dict):
            raise BadInput(**part[_KEY])
