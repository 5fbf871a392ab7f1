"""The tables of a set, such as `objects.parquet`: written from its samples, opened and checked.

`docs/TABLE.md` describes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from shards.ahead import run_ahead
from shards.atomic import sync_folder
from shards.errors import BadShard, UserError
from shards.extras import extra
from shards.lock import hold_lock, remove_leftovers
from shards.object_rows import COLUMNS as COLUMNS
from shards.object_rows import OBJECTS_TABLE
from shards.printable import printable
from shards.program import command
from shards.reader import ShardSet
from shards.report import Failure, Report
from shards.table_file import KINDS, ROW_GROUP, write_files
from shards.table_kind import METADATA, VERSION, Row, StoredContent, TableKind
from shards.table_list import OBJECTS, TableInfo, check_file, read_tables, record_table, remove_list_leftovers

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE = OBJECTS
_SAMPLES = 128  # of a task


def table_path(folder: Path) -> Path:
    """Return where the table of objects of the set in `folder` is, or would be."""
    return folder / TABLE


def rows_of(shards: ShardSet, position: int, kinds: Sequence[TableKind]) -> list[list[Row]]:
    """Return the rows of sample `position` for each kind of table.

    Raises:
        BadShard: the sample cannot be decoded.
    """
    try:
        content = StoredContent(shards, position)
        return [kind.rows(content) for kind in kinds]
    except BadShard as error:
        raise error.at(error.where or f"{shards.folder}: {shards.key(position)}") from None


def sample_batches(
    shards: ShardSet, kinds: Sequence[TableKind], threads: int, tick: Callable[[int], object] = lambda count: None
) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows of all samples in order, those of some samples at a time: a batch for each kind of table.

    Args:
        threads: samples that are decoded at a time.
        tick: called with the number of samples that are done since the last call.
    """

    def make(positions: range) -> tuple[int, list[pa.RecordBatch]]:
        rows = [rows_of(shards, position, kinds) for position in positions]
        batches = [kind.batch([row for sample in rows for row in sample[k]]) for k, kind in enumerate(kinds)]
        return len(positions), batches

    every = range(len(shards))
    calls = ([partial(make, every[begin : begin + _SAMPLES])] for begin in range(0, len(shards), _SAMPLES))
    with ThreadPoolExecutor(threads) as pool:
        try:
            for [(count, batches)] in run_ahead(pool, calls, 2 * threads):
                yield batches
                tick(count)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_tables(
    folder: Path, threads: int = 1, overwrite: bool = False, kinds: Sequence[TableKind] = KINDS
) -> dict[str, tuple[int, bool]]:
    """Write the tables of the set in `folder` that are not there.

    Tables of another state of the set are replaced. The bytes depend on the set and the version of pyarrow alone. What
    a killed call left unfinished is removed, also where there is nothing to write.

    Args:
        threads: samples that are decoded at a time.
        overwrite: write them in any case.

    Returns:
        By name of the file: the number of rows, and whether the table was there.

    Raises:
        UserError: the set cannot be read, another file has a table's name, or the folder cannot be written.
    """
    shards = ShardSet(folder)
    try:
        found = {kind: None if overwrite else _current(shards, kind) for kind in kinds}
        written = _write(shards, [kind for kind, info in found.items() if info is None], threads)
    except OSError as error:
        where = str(error.filename or folder)
        raise UserError("cannot write", where=where, met=str(error.strerror or error)) from None
    return {kind.name: ((info or written[kind]).rows, info is not None) for kind, info in found.items()}


def write_table(folder: Path, threads: int = 1, overwrite: bool = False) -> tuple[int, bool]:
    """Write the table of objects alone; see `write_tables`."""
    return write_tables(folder, threads, overwrite, [OBJECTS_TABLE])[TABLE]


def _write(shards: ShardSet, kinds: Sequence[TableKind], threads: int) -> dict[TableKind, TableInfo]:
    """Write tables beside the tars, and put them into the list. All of them are made in one pass over the samples."""
    folder = shards.folder
    lock = folder / f".{TABLE}.lock"
    unfinished = {kind: folder / f".{kind.name}.tmp" for kind in KINDS}
    if not kinds:
        remove_leftovers(lock, unfinished.values())
        remove_list_leftovers(folder)
        return {}
    paths = {kind: unfinished[kind] for kind in kinds}
    held = hold_lock(lock, exclusive=True)
    try:
        with tqdm(total=len(shards), unit="sample", desc=printable(folder.name), mininterval=0.5) as bar:
            written = write_files(shards.manifest, paths, sample_batches(shards, kinds, threads, bar.update))
        for kind, path in paths.items():
            os.replace(path, folder / kind.name)
            sync_folder(folder)
            record_table(folder, shards.manifest, kind.name, written[kind])
    finally:
        for path in (*unfinished.values(), lock):  # those of other kinds are of a killed run
            path.unlink(missing_ok=True)
        os.close(held)
    return written


def _current(shards: ShardSet, kind: TableKind) -> TableInfo | None:
    """Return the entry of a table that is of the set's state; None where it has to be written.

    A table of an older release, which no list names, is put into the list.
    """
    path = shards.folder / kind.name
    if not path.exists():
        return None
    try:
        listed = read_tables(shards.folder, shards.manifest).get(kind.name)
    except UserError:
        return None
    if listed is not None and listed.bytes != path.stat().st_size:
        return None
    checksum, rows = _state_of(path, kind)
    if checksum != shards.manifest.checksum or kind.count(shards.manifest) not in (None, rows):
        return None
    if listed is None:
        listed = TableInfo.of_file(path, rows)
        if os.access(shards.folder, os.W_OK):
            record_table(shards.folder, shards.manifest, kind.name, listed)
    return listed


def _again(path: Path) -> str:
    return f"write it again with {command(f'table {path.parent} --overwrite')}"


def _state_of(path: Path, kind: TableKind) -> tuple[str, int]:
    """Return (checksum of its manifest, number of rows) of the table at `path`; raises `UserError` where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
        schema = found.schema.to_arrow_schema()
        about = json.loads((schema.metadata or {})[METADATA])
        if about["version"] == VERSION and schema.names == [*kind.columns]:
            return str(about["manifest"]), found.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"not a table of {kind.what}", where=str(path), wanted=f"version {VERSION}", do=_again(path))


def open_table(shards: ShardSet, kind: TableKind = OBJECTS_TABLE) -> pq.ParquetFile:
    """Open a table of a set.

    Raises:
        UserError: there is none, or it is of another set or of another state of this one, or `tables.json` does not
            list it. A set without `tables.json`, of an older release, may have a table.
    """
    with extra("pipeline", where=kind.name):
        import pyarrow as pa
        import pyarrow.parquet as pq
    path = shards.table_file(kind.name)
    do = f"write it with {command(f'table {shards.folder}')}"
    if not path.exists():
        raise UserError(f"no table of its {kind.what}", where=str(shards.folder), wanted=kind.name, do=do)
    try:
        check_file(path, read_tables(shards.folder, shards.manifest))
        checksum, rows = _state_of(path, kind)
        if checksum != (expected := shards.manifest.checksum):
            raise UserError("a table of another set", where=str(path), met=checksum[:16], wanted=expected[:16], do=do)
        if (count := kind.count(shards.manifest)) not in (None, rows):
            met, wanted = f"{rows} rows", f"{count} {kind.what}"
            raise UserError("rows of the table", where=str(path), met=met, wanted=wanted, do=do)
        # Otherwise the columns of all row groups are read at once.
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"not a table of {kind.what}", where=str(path), met=str(error)[:80], do=do) from None


def check_tables(folder: Path, report: Report, threads: int = 1) -> None:
    """Compare the tables of a set that are there with the samples; failures name the key and the column."""
    kinds = [kind for kind in KINDS if (folder / kind.name).exists()]
    if not kinds:
        return
    path = folder
    try:
        shards = ShardSet(folder)
        stored = []
        for kind in kinds:
            path = folder / kind.name
            stored.append(_stored_rows(open_table(shards, kind), path, kind))
        for batches in sample_batches(shards, kinds, threads):
            for kind, expected, rows in zip(kinds, batches, stored, strict=True):
                path = folder / kind.name
                _compare(expected, rows, path, report)
        for kind, rows in zip(kinds, stored, strict=True):
            path = folder / kind.name
            if more := sum(1 for _ in rows):
                report.fail(Failure(str(path), "", "", "rows", f"{more} more than its samples have", "as many"))
    except UserError as error:
        report.fail(Failure(error.where or str(path), "", "", error.what, error.met, error.wanted or error.do))


def _compare(expected: pa.RecordBatch, stored: Iterator[Row], path: Path, report: Report) -> None:
    """Compare the next rows of a table with those that the samples give."""
    names = expected.schema.names
    for wanted in zip(*(expected.column(name).to_pylist() for name in names), strict=True):
        met = next(stored, None)
        if met is None:
            raise BadShard("rows of the table", where=str(path), met="too few", wanted=f"those of {wanted[0]} too")
        for column, a, b in zip(names, met, wanted, strict=True):
            if a != b:
                what = "a value of the table"
                report.fail(Failure(str(path), wanted[0], column, what, str(a)[:80], str(b)[:80]))


def _stored_rows(file: pq.ParquetFile, path: Path, kind: TableKind) -> Iterator[Row]:
    """Yield the rows of a table; raises `UserError` where it is damaged."""
    for batch in read_batches(file, path, [*kind.columns], 4096):
        yield from zip(*(batch.column(name).to_pylist() for name in kind.columns), strict=True)


def read_batches(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], rows: int = ROW_GROUP
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table in order, at most `rows` at a time; raises `UserError` where it is damaged."""
    import pyarrow as pa

    try:
        yield from file.iter_batches(rows, columns=[*columns])
    except (pa.ArrowException, OSError) as error:
        raise UserError("a damaged table", where=str(path), met=str(error)[:80], do=_again(path)) from None
