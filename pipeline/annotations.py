"""JSON files of annotations, of any size, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from pipeline.boundary import entries
from pipeline.pictures import is_pointer
from shards.errors import UserError


def read_items(path: Path, prefix: str = "item") -> Iterator[Any]:
    """The values at `prefix` of a JSON file (ijson's notation), one at a time; raises `UserError` on a broken file."""
    return _stream(path, prefix, ijson.items)


def read_pairs(path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of each member of the object at `prefix`, one at a time; `UserError` on a broken file."""
    return _stream(path, prefix, ijson.kvitems)


def _stream(path: Path, prefix: str, read: Any) -> Iterator[Any]:
    try:
        with open(path, "rb") as file:
            if is_pointer(file.read(64)):
                met = "a Git LFS or git-annex pointer"
                raise UserError("a pointer, not the file", where=str(path), met=met, do="fetch the file itself")
            file.seek(0)
            yield from entries(path, read(file, prefix, use_float=True))
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror)) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        met = (str(error).splitlines() or [""])[0]
        raise UserError("not whole JSON", where=str(path), met=met, do="download it again") from None
