"""Read CSV of any size, a line at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pipeline.boundary import track_entries
from pipeline.text import open_text
from shards.errors import UserError


def read_table(file: Path) -> Iterator[list[str]]:
    """Yield the values of each line of a CSV that is not empty; raises `UserError` where the file is no CSV."""
    with open_text(file) as raw:
        rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        try:
            yield from track_entries(file, (row for row in rows if row))
        except UnicodeDecodeError as error:
            raise _broken(
                file,
                f"the byte 0x{error.object[error.start]:02x} behind line {rows.line_num}",
                "UTF-8",
                "save it as UTF-8",
            ) from None
        except csv.Error as error:
            raise _broken(
                file,
                f"{error} behind line {rows.line_num}",
                f"values of at most {csv.field_size_limit()} characters",
                "look for an open quote there",
            ) from None


def _broken(file: Path, met: str, wanted: str, do: str) -> UserError:
    return UserError("not a whole CSV", where=str(file), met=met, wanted=wanted, do=do)
