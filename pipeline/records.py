"""Store what a source finds before the first picture is decoded: its inputs, and the annotations of each.

Kept in one SQLite file, so that annotations of gigabytes are streamed once and no worker holds a copy of them.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.raw import RawInput

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;  -- KiB: paths come in no order, and there are millions of them
CREATE TABLE inputs (path BLOB PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (path BLOB NOT NULL, body TEXT NOT NULL);
"""
_ENCODE = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


class RecordsWriter:
    """Collects the inputs of a source. Use it in a `with` statement. Nothing of it needs to survive a crash."""

    def __init__(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._file = file
        self._base = sqlite3.connect(file, isolation_level=None)
        try:
            self._base.executescript(_TABLES)
            self._base.execute("BEGIN")
        except sqlite3.Error as failed:
            self._base.close()
            raise self._as_os_error(failed) from None

    def __enter__(self) -> RecordsWriter:
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        try:
            if kind is None:
                self._base.execute("CREATE INDEX part_of ON parts (path)")
                self._base.execute("COMMIT")
        except sqlite3.Error as failed:
            error = failed
        finally:
            self._base.close()
        if isinstance(error, sqlite3.Error):
            raise self._as_os_error(error) from None

    def _as_os_error(self, error: sqlite3.Error) -> OSError:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, str(error), str(self._file))

    def add(self, path: str, size: int) -> bool:
        """Add an input: its path relative to the source's root, and its bytes. Adding it again has no effect.

        Returns whether it was new.
        """
        done = self._base.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (path_bytes(path), size))
        return done.rowcount == 1

    def attach(self, path: str, part: Any) -> None:
        """Attach a part of an annotation to an input, as JSON. Parts keep their order."""
        self._base.execute("INSERT INTO parts VALUES (?, ?)", (path_bytes(path), _ENCODE(part)))


def path_bytes(path: str) -> bytes:
    """Return a path's bytes, also for a path that no file can have."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair, out of a JSON: it names no file, and is refused
        return path.encode("utf-8", "backslashreplace")


class Records:
    """Reads what a `RecordsWriter` collected. Picklable: each process opens the file for itself, on first use."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def _base(self) -> sqlite3.Connection:
        address = f"{self.file.resolve().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(address, uri=True, check_same_thread=False)

    def __reduce__(self) -> tuple[object, ...]:
        return Records, (self.file,)

    def __del__(self) -> None:
        if "_base" in vars(self):
            self._base.close()

    def inputs(self) -> list[RawInput]:
        """Return all inputs, in the order of their paths' bytes."""
        rows = self._base.execute("SELECT path, bytes FROM inputs ORDER BY path")
        return [RawInput(os.fsdecode(path), size) for path, size in rows]

    def parts(self, path: str) -> list[Any]:
        """Return the parts that were attached to an input, in that order."""
        return [*self.each_part(path)]

    def each_part(self, path: str) -> Iterator[Any]:
        """Yield the parts of an input one by one: they may be large."""
        return map(json.loads, self.bodies(path))

    def bodies(self, path: str) -> Iterator[str]:
        """Yield the parts of an input as JSON texts."""
        rows = self._base.execute("SELECT body FROM parts WHERE path = ? ORDER BY rowid", (os.fsencode(path),))
        for (body,) in rows:
            yield body
