"""Columns that were made later: a parquet file becomes a table beside `objects.parquet`, with a row for each object."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.atomic import atomic_parquet, sync_folder
from shards.checksum import file_sha256
from shards.errors import UserError
from shards.extras import extra
from shards.lock import hold_lock
from shards.manifest import Manifest
from shards.printable import printable
from shards.processors import usable_processors
from shards.program import command
from shards.reader import ShardSet
from shards.table import COLUMNS, TABLE, open_table, read_batches, table_path
from shards.table_list import (
    OWN,
    JoinedInfo,
    TableInfo,
    check_file,
    drop_table,
    read_tables,
    record_table,
    remove_list_leftovers,
)

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

Numbers = NDArray[np.int64]
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Names of joined tables."""
_KEYS = ("key", "object", "id")
"""Columns that rows are found by: those of them that the file has."""
_META = b"sa2va-shards-joined"
_LOCK = ".join.lock"
_SPILL = ".join.spill"
_VERSION = 1
_MEMORY = "1GB"
"""Memory that DuckDB may use; the rest of a join is in `_SPILL`, and so is the table while it is written."""
_STEP = 2048  # rows, of which a row group has a multiple
_ROW_GROUP = 32 * _STEP  # most rows
_GROUP_BYTES = 64 << 20  # of a row group, about, and of rows that are kept before they are written to their buckets
_BUCKETS = 1024  # at most, about
_PARTNERS = 1 << 16  # pairs of a row and an object that DuckDB gives at a time
_LONGEST_COLUMN = 200  # characters of a column's name


def joined_path(folder: Path, name: str) -> Path:
    """Return where the joined table `name` of the set in `folder` is, or would be."""
    return folder / f"{name}.parquet"


@dataclass(frozen=True)
class Joined:
    """A table that was joined to a set."""

    path: Path
    info: TableInfo
    """Its entry in the list of tables."""
    about: JoinedInfo
    """Where its columns come from, with what has no partner."""
    was_there: bool
    """Whether it was there already, made of the same file."""


def join_file(folder: Path, file: Path, name: str | None = None, overwrite: bool = False) -> Joined:
    """Join the columns of a parquet file to a set: write NAME.parquet, with exactly the rows of objects.parquet.

    Rows are found by `key` and those of `object` and `id` that the file has; by `key` alone each object of the sample
    gets the row. Objects without a partner have nulls; so have values that are not a number (NaN), of which a condition
    would say that they are above all others. The tars do not change. The bytes follow from the set, the file and the
    versions of the libraries. Memory holds about a gigabyte, and a disk the rest.

    Args:
        name: of the table; None takes the file's name without its ending.
        overwrite: replace a table of this name that was made of another file.

    Raises:
        UserError: the set has no table of objects; the file cannot be joined; the name is not allowed or taken.
    """
    with extra("pipeline", where="join"):
        import duckdb  # noqa: F401
    name = _checked_name(file.stem if name is None else name, "--as")
    shards = ShardSet(folder)
    objects = open_table(shards)
    path = joined_path(folder, name)
    source = Source.open(file)
    try:
        digest = file_sha256(file)
        with _locked(folder):
            tables = read_tables(folder, shards.manifest)
            if TABLE not in tables:  # a set that was written before there was a list
                info = TableInfo.of_file(table_path(folder), shards.manifest.objects)
                record_table(folder, shards.manifest, TABLE, info)
            known = _known(path, tables, shards.manifest)
            if known and known.joined and known.joined.origin_sha256 == digest:
                return Joined(path, known, known.joined, True)
            if known and not overwrite:
                do = "give another --as, or --overwrite"
                raise UserError("the name is taken", where=str(path), met="a table of another file", do=do)
            about = JoinedInfo(file.name, digest, source.by, source.columns)
            about = write_joined(objects, table_path(folder), source, path, about, shards.manifest.checksum)
            info = TableInfo.of_file(path, shards.manifest.objects, about)
            record_table(folder, shards.manifest, path.name, info)
    except OSError as error:
        where = str(error.filename or folder)
        raise UserError("cannot read or write", where=where, met=str(error.strerror or error)) from None
    return Joined(path, info, about, False)


def explain(joined: Joined) -> str:
    """Return one line on what was joined: rows, columns, and what has no partner on either side."""
    about = joined.about
    found = f"{joined.info.rows:,} rows by {', '.join(about.by)}{', up to date' if joined.was_there else ''}"
    missing = f"{about.without_partner:,} objects without a partner, {about.unused:,} rows of {about.origin} unused"
    return f"{joined.path}: {found}; {missing}; columns {', '.join(sorted(about.columns))}"


def drop(folder: Path, name: str) -> Path:
    """Remove a joined table from a set; return where it was.

    Raises:
        UserError: the set has no such table.
    """
    path = joined_path(folder, _checked_name(name, "--drop"))
    manifest = ShardSet(folder).manifest
    with _locked(folder):
        tables = read_tables(folder, manifest)
        if path.name not in tables and not _is_joined(path):
            found = ", ".join(name.removesuffix(".parquet") for name, info in tables.items() if info.joined)
            raise UserError("no such joined table", where=str(folder), met=name, wanted=found or "none has been joined")
        drop_table(folder, manifest, path.name)
        path.unlink(missing_ok=True)
        sync_folder(folder)
    return path


def _checked_name(name: str, option: str) -> str:
    """Return a name that a joined table may have; raises `UserError` for another one."""
    do = "give another name with --as" if option == "--as" else ""
    if not NAME.fullmatch(name):
        wanted = "small letters, digits and _, a letter first, at most 64"
        raise UserError("not a name of a table", where=option, met=name, wanted=wanted, do=do)
    if f"{name}.parquet" in OWN or name in COLUMNS:
        what = "a table" if f"{name}.parquet" in OWN else "a column of the table of objects"
        raise UserError("the name is taken", where=option, met=f"{name}, {what}", do=do)
    return name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of joins of a set; what a killed one left is removed."""
    lock = folder / _LOCK
    held = hold_lock(lock, exclusive=True)
    try:
        yield
    finally:
        shutil.rmtree(folder / _SPILL, ignore_errors=True)
        remove_list_leftovers(folder)
        lock.unlink(missing_ok=True)
        os.close(held)


def _known(path: Path, tables: dict[str, TableInfo], manifest: Manifest) -> TableInfo | None:
    """Return the entry of a joined table that is whole; None where there is none, or where it may be written again.

    Raises:
        UserError: another file has the name.
    """
    if path.name in tables:
        try:
            return check_file(path, tables)
        except UserError:  # the file was removed or cut: it is written again
            return None
    if path.exists() and not _is_joined(path):
        do = "give another --as"
        raise UserError("the name is taken", where=str(path), met="a file that is no joined table", do=do)
    return None


def _is_joined(path: Path) -> bool:
    """Whether a file was written by `join_file`, for this state of its set or an earlier one."""
    return columns_of(path) is not None


def columns_of(path: Path) -> dict[str, str] | None:
    """Return the type of each column of a joined table by name; None for any other file, or none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        return {f.name: _type_name(path, f) for f in schema} if _META in (schema.metadata or {}) else None
    except (pa.ArrowException, OSError, UserError):
        return None


def open_joined(shards: ShardSet, name: str, tables: dict[str, TableInfo]) -> pq.ParquetFile:
    """Open a joined table of a set whose list of tables names it.

    Raises:
        UserError: it is missing or damaged, or was joined to another state of the set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = shards.table_file(joined_path(shards.folder, name).name)
    info = check_file(path, tables)
    do = f"join it again with {command(f'join {shards.folder} FILE --as {name}')}"
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        about = json.loads((file.schema_arrow.metadata or {})[_META])
        if (found := str(about["manifest"])) != (expected := shards.manifest.checksum):
            what = "joined to another state of the set"
            raise UserError(what, where=str(path), met=found[:16], wanted=expected[:16], do=do)
        if info is None or info.joined is None or {*file.schema_arrow.names} != {*info.joined.columns}:
            raise ValueError("columns that the list of tables does not name")
        if file.metadata.num_rows != shards.manifest.objects:
            met, wanted = f"{file.metadata.num_rows} rows", f"{shards.manifest.objects} objects"
            raise UserError("rows of the table", where=str(path), met=met, wanted=wanted, do=do)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("not a joined table", where=str(path), met=str(error)[:80], do=do) from None
    return file


@dataclass(frozen=True)
class Source:
    """A file that can be joined."""

    path: Path
    file: pq.ParquetFile
    by: tuple[str, ...]
    """Columns that its rows are found by, the first of them `key`."""
    columns: dict[str, str]
    """Type by name of the columns that it adds, as `shards.table.COLUMNS` has them."""

    @classmethod
    def open(cls, path: Path) -> Source:
        """Open a parquet file, and check its columns. Raises `UserError` in one line."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise UserError("no such file", where=str(path), wanted="a parquet file")
        try:
            file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
            schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise UserError("not a parquet file", where=str(path), met=str(error)[:80]) from None
        _check_names(path, schema.names)
        by = tuple(name for name in _KEYS if name in schema.names)
        columns = {field.name: _type_name(path, field) for field in schema if field.name not in _KEYS}
        if by[:1] != ("key",):
            met = ", ".join(map(str, schema.names))[:80]
            wanted = "key, and perhaps object or id"
            raise UserError("no column of keys", where=str(path), met=met, wanted=wanted)
        if not columns:
            raise UserError("nothing to join", where=str(path), met=f"no column but {', '.join(by)}")
        for name in by:
            kind = schema.field(name).type
            fits = pa.types.is_integer(kind) if name == "object" else _is_text(kind)
            if not fits:
                wanted = "whole numbers" if name == "object" else "texts"
                raise UserError("a column of keys", where=f"{path}: {name}", met=str(kind), wanted=wanted)
        return cls(path, file, by, columns)

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return int(self.file.metadata.num_rows)

    def group_rows(self) -> int:
        """Return the number of rows of a row group of the joined table: less where rows are long."""
        found = self.file.metadata
        size = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
        steps = _GROUP_BYTES * found.num_rows // max(1, size) // _STEP
        return min(_ROW_GROUP, max(1, steps) * _STEP)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the keys and these columns as `k0`, `k1`, ..., `v0`, `v1`, ..., and as `row` the number of each row.

        Raises:
            UserError: the file is damaged, or a row has no key.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = self.schema(columns)
        begin = 0
        try:
            for batch in self.file.iter_batches(self.group_rows(), columns=[*self.by, *columns]):
                arrays = []
                for name, kind in zip([*self.by, *columns], schema.types, strict=False):
                    array = batch.column(batch.schema.names.index(name)).cast(kind)
                    if pa.types.is_floating(kind):
                        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
                    elif name in self.by and array.null_count:
                        row = begin + int(np.flatnonzero(array.is_null())[0])
                        raise UserError("a row without a key", where=f"{self.path}, row {row}", met=f"no {name}")
                    arrays.append(array)
                rows = pa.array(np.arange(begin, begin + len(batch)))
                yield pa.record_batch([*arrays, rows], schema)
                begin += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError("a damaged file", where=str(self.path), met=str(error)[:80]) from None

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """Return the schema of `batches`."""
        import pyarrow as pa

        types = {"key": "string", "object": "int64", "id": "string"} | self.columns
        keys = [(f"k{i}", _arrow_type(types[name])) for i, name in enumerate(self.by)]
        values = [(f"v{i}", _arrow_type(types[name])) for i, name in enumerate(columns)]
        return pa.schema([*keys, *values, ("row", pa.int64())])


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Check the names of columns: DuckDB does not tell large and small letters apart. Raises `UserError`."""
    seen: dict[str, str] = {}
    for name in names:
        folded = name.lower()
        if folded in seen:
            raise UserError("two columns of one name", where=str(path), met=f"{seen[folded]} and {name}"[:200])
        seen[folded] = name
        if not name or len(name) > _LONGEST_COLUMN or not name.isprintable():
            wanted = f"1 to {_LONGEST_COLUMN} printable characters"
            raise UserError("the name of a column", where=str(path), met=repr(name)[:80], wanted=wanted)
        if folded in COLUMNS and name not in _KEYS:
            what, do = "a column that the table of objects has", "rename it, or leave it out"
            raise UserError(what, where=str(path), met=name, do=do)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _type_name(path: Path, field: pa.Field) -> str:
    """Return the type that a column has in the joined table; raises `UserError` for one that it cannot have."""
    import pyarrow as pa

    types = pa.types
    kind = field.type
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    is_list = any(test(kind) for test in lists)
    value = kind.value_type if is_list else kind
    if types.is_decimal(value):
        found = "double"
    elif types.is_float16(value):
        found = "float"
    elif _is_text(value):
        found = "string"
    elif types.is_integer(value) or types.is_floating(value) or types.is_boolean(value):
        found = str(value)
    else:
        wanted = "numbers, texts, truth values, or lists of these"
        raise UserError("a column of another type", where=f"{path}: {field.name}", met=str(kind)[:80], wanted=wanted)
    return f"list<{found}>" if is_list else found


def _arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type of a name as `_type_name` returns it."""
    import pyarrow as pa

    if name.startswith("list<"):
        return pa.list_(_arrow_type(name[5:-1]))
    return {"string": pa.string(), "double": pa.float64(), "float": pa.float32(), "bool": pa.bool_()}.get(
        name
    ) or pa.type_for_alias(name)


class _Feed:
    """Batches as a stream for DuckDB, which makes another error of one that is raised in them: `error` keeps it."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        import pyarrow as pa

        self.error: UserError | None = None
        self.reader = pa.RecordBatchReader.from_batches(schema, self._kept(batches))

    def _kept(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except UserError as error:
            self.error = error
            raise


@contextmanager
def _connected(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection without files, network and extensions, that writes what its memory does not hold."""
    import duckdb

    spill = folder / _SPILL
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir()
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",  # otherwise a name may be a variable of this program
        "memory_limit": _MEMORY,
        "temp_directory": str(spill),
        "threads": str(usable_processors()),
    }
    with duckdb.connect(":memory:", config=config) as connection:
        connection.execute("SET enable_progress_bar = false; SET lock_configuration = true")
        yield connection


def _queried(connection: duckdb.DuckDBPyConnection, feeds: dict[str, _Feed], query: str) -> Iterator[pa.RecordBatch]:
    """Yield the result of a query over streams; raises `UserError` where one of these does, or DuckDB cannot do it."""
    import duckdb
    import pyarrow as pa

    for name, feed in feeds.items():
        connection.register(name, feed.reader)
    try:
        yield from connection.sql(query).to_arrow_reader(_PARTNERS)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        kept = next((feed.error for feed in feeds.values() if feed.error), None)
        if kept is not None:
            raise kept from None
        raise UserError("cannot join", met=str(error).partition("\n")[0][:200]) from None
    finally:
        for name in feeds:
            connection.unregister(name)


def _check_unique(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    keys = ", ".join(f"k{i}" for i in range(len(source.by)))
    feed = _Feed(source.schema([]), source.batches([]))
    query = (
        f"SELECT {keys}, count(*), min(row) FROM later GROUP BY {keys} HAVING count(*) > 1 ORDER BY min(row) LIMIT 1"
    )
    for batch in _queried(connection, {"later": feed}, query):
        for *values, count, first in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            met = ", ".join(f"{name} {value}" for name, value in zip(source.by, values, strict=True))
            met = f"{count} rows with {met}, the first of them row {first}"
            raise UserError("a key that is there twice", where=str(source.path), met=met[:200])


def write_joined(
    objects: pq.ParquetFile, table: Path, source: Source, path: Path, about: JoinedInfo, manifest: str
) -> JoinedInfo:
    """Write the joined table at `path`; return `about` with what was counted.

    DuckDB finds for each row of the file the objects that it belongs to. Then the file is read once in its order, and
    its rows are put into buckets, one for some objects that follow one another, from which the table is written.

    Args:
        objects: the table of objects.
        table: its path.
        source: the file.
        about: where the columns come from.
        manifest: the checksum of the set's manifest.

    Raises:
        UserError: a key is there twice, or a file is damaged.
        OSError: the table cannot be written.
    """
    import pyarrow as pa

    count = objects.metadata.num_rows
    group = source.group_rows()
    try:
        with (
            _connected(path.parent) as connection,
            tqdm(total=source.rows + count, unit="row", desc=printable(path.name), mininterval=0.5) as bar,
        ):
            _check_unique(connection, source)
            buckets = _Buckets(path.parent / _SPILL, group * max(1, -(-count // (group * _BUCKETS))))
            used = _scatter(source, _partners(objects, table, source, connection), buckets, bar.update)
            fields = [pa.field(name, _arrow_type(kind)) for name, kind in source.columns.items()]
            meta = {"version": _VERSION, "manifest": manifest}
            schema = pa.schema(fields, {_META: json.dumps(meta, sort_keys=True)})
            with atomic_parquet(path, schema, path.parent / _SPILL) as writer:
                without = _write_rows(writer, schema, buckets, count, group, bar.update)
    except pa.ArrowException as error:
        raise UserError("cannot join", where=str(source.path), met=str(error)[:200]) from None
    return replace(about, without_partner=without, unused=source.rows - used)


def _partners(
    objects: pq.ParquetFile, table: Path, source: Source, connection: duckdb.DuckDBPyConnection
) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield rows of the source, ascending, and the objects that they belong to."""
    import pyarrow as pa

    kinds = {"key": pa.string(), "object": pa.int64(), "id": pa.string()}
    keys = [pa.field(f"k{i}", kinds[name]) for i, name in enumerate(source.by)]
    schema = pa.schema([*keys, pa.field("row", pa.int64())])

    def batches() -> Iterator[pa.RecordBatch]:
        begin = 0
        for batch in read_batches(objects, table, source.by):
            arrays = [batch.column(name).cast(kinds[name]) for name in source.by]
            rows = pa.array(np.arange(begin, begin + len(batch)))
            yield pa.record_batch([*arrays, rows], schema)
            begin += len(batch)

    feeds = {"objects": _Feed(schema, batches()), "later": _Feed(source.schema([]), source.batches([]))}
    same = " AND ".join(f"objects.k{i} = later.k{i}" for i in range(len(source.by)))
    query = f"SELECT later.row, objects.row FROM objects JOIN later ON {same} ORDER BY ALL"
    for batch in _queried(connection, feeds, query):
        rows, numbers = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
        yield rows, numbers


class _Buckets:
    """Rows of values, each with the number of its object, in a file for each `size` objects."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self._folder = folder
        self._kept: dict[int, list[pa.RecordBatch]] = {}
        self._bytes = 0

    def add(self, values: pa.RecordBatch, objects: Numbers) -> None:
        """Add rows of values for these objects."""
        import pyarrow as pa

        buckets = objects // self.size
        order = np.argsort(buckets, kind="stable")
        batch = values.append_column("object", pa.array(objects)).take(pa.array(order))
        found, starts = np.unique(buckets[order], return_index=True)
        for bucket, begin, end in zip(found.tolist(), starts, [*starts[1:], len(batch)], strict=True):
            self._kept.setdefault(bucket, []).append(batch.slice(begin, end - begin))
        self._bytes += batch.nbytes
        if self._bytes > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        for bucket, batches in self._kept.items():
            with open(self._folder / f"{bucket}.rows", "ab") as file:
                table = pa.Table.from_batches(batches).combine_chunks()
                with pa.ipc.new_stream(file, table.schema) as stream:
                    stream.write_table(table)
        self._kept.clear()
        self._bytes = 0

    def take(self, bucket: int) -> pa.Table | None:
        """Return the rows of a bucket, and remove them; None where there are none."""
        import pyarrow as pa

        self._flush()
        path = self._folder / f"{bucket}.rows"
        if not path.exists():
            return None
        parts = []
        with open(path, "rb") as file:
            while file.tell() < path.stat().st_size:
                parts.append(pa.ipc.open_stream(file).read_all())
        path.unlink()
        return pa.concat_tables(parts)


def _scatter(
    source: Source,
    partners: Iterator[tuple[Numbers, Numbers]],
    buckets: _Buckets,
    tick: Callable[[int], object],
) -> int:
    """Put the values of the source's rows into the buckets of their objects; return how many rows have an object."""
    import pyarrow as pa

    used = begin = 0
    rows = objects = np.zeros(0, np.int64)
    for batch in source.batches([*source.columns]):
        end = begin + len(batch)
        while (not len(rows) or rows[-1] < end) and (more := next(partners, None)) is not None:
            rows, objects = np.concatenate([rows, more[0]]), np.concatenate([objects, more[1]])
        count = int(np.searchsorted(rows, end))
        if count:
            used += len(np.unique(rows[:count]))
            values = batch.select([f"v{i}" for i in range(len(source.columns))])
            buckets.add(values.take(pa.array(rows[:count] - begin)), objects[:count])
        rows, objects = rows[count:], objects[count:]
        begin = end
        tick(len(batch))
    return used


def _write_rows(
    writer: pq.ParquetWriter,
    schema: pa.Schema,
    buckets: _Buckets,
    count: int,
    group: int,
    tick: Callable[[int], object],
) -> int:
    """Write a table of `count` rows in groups; return the number of rows without values."""
    import pyarrow as pa

    without = 0
    for first in range(0, count, buckets.size):
        places = np.full(min(buckets.size, count - first), -1)
        rows = buckets.take(first // buckets.size)
        if rows is None:
            rows = schema.empty_table().append_column("object", pa.array([], pa.int64()))
        places[rows.column("object").to_numpy() - first] = np.arange(len(rows))
        without += int((places < 0).sum())
        values = rows.drop_columns("object").rename_columns(schema.names).replace_schema_metadata(schema.metadata)
        whole = values.take(pa.array(places, mask=places < 0))
        for begin in range(0, len(whole), group):
            writer.write_table(whole.slice(begin, group).combine_chunks(), row_group_size=group)
        tick(len(whole))
    return without
