"""The list of a set's parquet tables: `tables.json` beside its manifest, with size and checksum of each.

A table is written first, then this list. A file that the list does not name with its size is no table of the set.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import atomic_write
from shards.checksum import file_sha256
from shards.errors import UserError
from shards.lock import hold_lock, remove_leftovers
from shards.manifest import Manifest, sha256
from shards.program import command
from shards.regular_file import read_regular
from shards.strict_json import parse_json

if TYPE_CHECKING:
    from shards.report import Report

LIST = "tables.json"
MOST_BYTES = 1 << 24
"""Largest size of the list."""
NAME = re.compile(r"[a-z][a-z0-9_]*\.parquet")
"""Names of tables."""
OBJECTS = "objects.parquet"
PICTURES = "pictures.parquet"
OWN = (OBJECTS, PICTURES)
"""Names of the tables that are made of the samples alone; all others were joined."""
_LOCK = ".tables.lock"
_OWN_CHECKSUM = "tables_sha256"


@dataclass(frozen=True)
class JoinedInfo:
    """Where the columns of a joined table come from."""

    origin: str
    """Name of the file that was joined."""
    origin_sha256: str
    by: tuple[str, ...]
    """Columns that its rows were found by."""
    columns: dict[str, str] = field(default_factory=dict)
    """Type by name of each column that it adds."""
    without_partner: int = 0
    """Objects of the set for which it has no row."""
    unused: int = 0
    """Its rows for which the set has no object."""


@dataclass(frozen=True)
class TableInfo:
    """One table of a set."""

    sha256: str
    rows: int
    bytes: int
    joined: JoinedInfo | None = None
    """None for a table that is made of the samples alone."""

    @classmethod
    def of_file(cls, path: Path, rows: int, joined: JoinedInfo | None = None) -> TableInfo:
        """Return the entry of the table at `path`, which is read whole. Raises `OSError`."""
        return cls(file_sha256(path), rows, path.stat().st_size, joined)


def pack_tables(manifest: Manifest, tables: Mapping[str, TableInfo]) -> bytes:
    """Return the bytes of tables.json: canonical, so they follow from the arguments alone."""
    body: dict[str, Any] = {"manifest": manifest.checksum, "tables": {}}
    for name, info in tables.items():
        body["tables"][name] = asdict(info)
        if info.joined is None:
            del body["tables"][name]["joined"]
    body[_OWN_CHECKSUM] = _own_checksum(body)
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def parse_tables(data: bytes, where: str, manifest: Manifest) -> dict[str, TableInfo]:
    """Parse tables.json; `where` is for messages. Raises `UserError` as `read_tables`."""
    folder = where.rpartition("/")[0] or "."
    do = f"write the tables again with {command(f'table {folder}')}"
    try:
        body = parse_json(data)
        if body.pop(_OWN_CHECKSUM) != _own_checksum(body):
            raise ValueError("another checksum than its own")
        found = body["manifest"]
        tables = {name: _parse_info(name, entry) for name, entry in body["tables"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("not a list of tables", where=where, met=f"{error}"[:80], do=do) from None
    if found != (expected := manifest.checksum):
        met, wanted = str(found)[:16], expected[:16]
        raise UserError("tables of another state of the set", where=where, met=met, wanted=wanted, do=do)
    return tables


def listed_names(data: bytes) -> list[str]:
    """Return the names of the tables in a list of any state of a set; [] where it is damaged."""
    try:
        return [name for name in parse_json(data)["tables"] if NAME.fullmatch(name)]
    except (ValueError, KeyError, TypeError):
        return []


def _parse_info(name: str, entry: dict[str, Any]) -> TableInfo:
    """Return an entry of the list; raises `ValueError`, `KeyError`, `TypeError` or `AttributeError`."""
    joined = entry.get("joined")
    if joined is not None:
        columns = {str(column): str(kind) for column, kind in joined["columns"].items()}
        joined = JoinedInfo(**{**joined, "by": tuple(map(str, joined["by"])), "columns": columns})
    info = TableInfo(entry["sha256"], entry["rows"], entry["bytes"], joined)
    counts = [info.rows, info.bytes, *([joined.without_partner, joined.unused] if joined else [])]
    texts = [info.sha256, *([joined.origin, joined.origin_sha256] if joined else [])]
    if not NAME.fullmatch(name) or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"the entry {name!r}")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"the entry {name!r}")
    return info


def _own_checksum(body: dict[str, Any]) -> str:
    """Return the SHA-256 of the list's other keys as canonical JSON: sorted, without spaces, ASCII."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def read_tables(folder: Path, manifest: Manifest) -> dict[str, TableInfo]:
    """Return the tables of the set in `folder` by the names of their files; {} where it has no list.

    The files themselves are not looked at: see `check_file`.

    Raises:
        UserError: the list is damaged, or is of another state of the set.
    """
    path = folder / LIST
    try:
        data = read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError("not a list of tables", where=str(path), met=str(error.strerror or error)) from None
    return parse_tables(data, str(path), manifest)


def check_file(path: Path, tables: Mapping[str, TableInfo]) -> TableInfo | None:
    """Return the entry of the table at `path`; None where the set has no list of tables.

    Args:
        tables: as `read_tables` returns them.

    Raises:
        UserError: the file is missing, or the list does not name it with its size.
    """
    info = tables.get(path.name)
    if info is None and not (path.parent / LIST).exists():
        return None
    do = f"write it again with {command(f'table {path.parent}')}" if path.name in OWN else "join it again"
    if info is None:
        raise UserError("not a table of this set", where=str(path), wanted=f"an entry of {LIST}", do=do)
    try:
        met = f"{(size := path.stat().st_size)} bytes"
    except OSError as error:
        size, met = -1, str(error.strerror)
    if size != info.bytes:
        wanted = f"{info.bytes} bytes, as {LIST} says"
        raise UserError("not the table that was written", where=str(path), met=met, wanted=wanted, do=do)
    return info


def record_table(folder: Path, manifest: Manifest, name: str, info: TableInfo) -> None:
    """Put a table that stands in `folder` into its list, in place of an earlier entry of this name.

    Entries of another state of the set, and those of a damaged list, are dropped.

    Raises:
        UserError: another run holds the list for long.
        OSError: it cannot be written.
    """
    _change_list(folder, manifest, name, info)


def drop_table(folder: Path, manifest: Manifest, name: str) -> None:
    """Take a table out of the list of the set in `folder`, if it is there. Raises as `record_table`."""
    _change_list(folder, manifest, name, None)


def _change_list(folder: Path, manifest: Manifest, name: str, info: TableInfo | None) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"not the name of a table: {name!r}")
    lock = folder / _LOCK
    held = hold_lock(lock, exclusive=True)
    try:
        try:
            tables = read_tables(folder, manifest)
        except UserError:
            tables = {}
        tables.pop(name, None)
        data = pack_tables(manifest, tables if info is None else {**tables, name: info})
        for leftover in _unfinished(folder):  # of a process that was killed while it held the lock
            leftover.unlink()
        if not (folder / LIST).exists() or read_regular(folder / LIST) != data:
            atomic_write(folder / LIST, data)
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def remove_list_leftovers(folder: Path) -> None:
    """Remove what a run that was killed while it changed the list of the set in `folder` left beside it."""
    remove_leftovers(folder / _LOCK, _unfinished(folder))


def _unfinished(folder: Path) -> Iterator[Path]:
    yield from folder.glob(f".{LIST}.*.tmp")


def check_list(folder: Path, manifest: Manifest, report: Report) -> None:
    """Compare each table that a set lists with its size, its SHA-256 and the number of its rows."""
    from shards.report import Failure  # prints with rich, which reading does not need

    def fail(name: str, what: str, met: object, wanted: object) -> None:
        report.fail(Failure(str(folder / name), "", "", what, str(met), str(wanted)))

    try:
        tables = read_tables(folder, manifest)
        for name, info in tables.items():
            check_file(folder / name, tables)
            if (digest := file_sha256(folder / name)) != info.sha256:
                fail(name, "SHA-256", digest, info.sha256)
            if (name == OBJECTS or info.joined) and info.rows != manifest.objects:
                fail(LIST, f"rows of {name}", info.rows, f"{manifest.objects} objects")
    except UserError as error:
        report.fail(Failure(error.where, "", "", error.what, error.met, error.wanted or error.do))
    except OSError as error:
        fail(LIST, "a table cannot be read", f"{error.filename}: {error.strerror}", "a sound one")
