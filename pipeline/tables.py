"""CSV of any size, a line at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.boundary import entries
from pipeline.pictures import is_pointer
from shards.errors import UserError


def read_table(file: Path) -> Iterator[list[str]]:
    """The lines of a CSV that are not empty, in any of the usual line ends; raises `UserError` where it is none."""
    try:
        with open(file, "rb") as raw:
            if is_pointer(raw.read(64)):
                do = "fetch the file itself"
                raise UserError("a pointer, not the file", where=str(file), met="a Git LFS or git-annex pointer", do=do)
        with open(file, encoding="utf-8-sig", newline="") as text:
            yield from entries(file, (row for row in csv.reader(text) if row))
    except OSError as error:
        raise UserError("cannot be read", where=str(file), met=str(error.strerror)) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError("not a whole CSV", where=str(file), met=str(error), do="fetch it again") from None
