"""The table of a set's objects: `objects.parquet` beside the tars, one row per object. `docs/TABLE.md` describes it."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from shards import codec
from shards.atomic import sync_folder
from shards.errors import BadShard, UserError
from shards.extras import extra
from shards.format import Field
from shards.lock import hold_lock
from shards.manifest import Manifest
from shards.meta import check_meta
from shards.printable import printable
from shards.program import check_set, command
from shards.reader import ShardSet
from shards.report import Failure, Report
from shards.sample import dicts
from shards.table_list import OBJECTS, TableInfo, check_file, read_tables, record_table

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE = OBJECTS
COLUMNS: dict[str, str] = {
    "key": "string",
    "position": "int64",
    "object": "int32",
    "id": "string",
    "source": "string",
    "path": "string",
    "split": "string",
    "frames": "int32",
    "height": "int32",
    "width": "int32",
    "areas": "list<double>",
    "area": "double",
    "area_min": "double",
    "area_max": "double",
    "cells": "list<int32>",
    "filled": "list<int32>",
    "texts": "list<string>",
    "words": "int32",
    "category": "string",
    "expressions": "list<string>",
    "more": "string",
}
"""Columns and their types, in order."""
_META = b"sa2va-shards"
_VERSION = 1
_ROW_GROUP = 1 << 16  # rows
_SAMPLES = 128  # of a task; the batches of rows, and so the bytes of the file, do not depend on the number of threads
_MASKS = 64  # decoded at a time: 8 MiB of bits
_COLUMN_NAMES = ("id", "texts", "filled", "mask_sizes", "source_keys")
Row = tuple[Any, ...]


def table_path(folder: Path) -> Path:
    """Return where the table of the set in `folder` is, or would be."""
    return folder / TABLE


def rows_of(shards: ShardSet, position: int) -> list[Row]:
    """Return the rows of the objects of sample `position`, each with the values of `COLUMNS` in order.

    Raises:
        BadShard: the sample cannot be decoded.
    """
    meta, members = shards.sample(position)
    if not meta["objects"]:
        return []
    key = shards.key(position)
    try:
        check_meta(meta)
        areas, cells = _measure(shards, members, len(meta["frames"]), len(meta["objects"]))
    except BadShard as error:
        raise error.at(f"{shards.folder}: {key}") from None
    first = meta["frames"][0]
    named = _expressions(meta)
    sample = key, position
    about = _text(meta.get("source")), _text(meta.get("path"))
    size = len(meta["frames"]), first["height"], first["width"]
    rows = []
    for n, item in enumerate(meta["objects"]):
        split = item.get("split") if isinstance(item.get("split"), str) else meta.get("split")
        texts = [_clean(text) for text in item["texts"] if isinstance(text, str)]
        filled = item.get("filled", [0] * len(meta["frames"]))
        of_object = areas[:, n]
        rows.append(
            (
                *(*sample, n, _clean(item["id"]), *about, _text(split), *size),
                *(of_object.tolist(), float(of_object.mean()), float(of_object.min()), float(of_object.max())),
                *(cells[:, n].tolist(), filled),
                *(texts, max((len(text.split()) for text in texts), default=0)),
                *(_text(item.get("category")), named.get(item["id"], []), _more(item)),
            )
        )
    return rows


def _measure(
    shards: ShardSet, members: dict[Field, memoryview], frames: int, objects: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return (shares of the mask that are set, numbers of prompt cells), both (frames, objects)."""
    areas = np.empty((frames, objects), np.float64)
    cells = np.empty((frames, objects), np.int64)
    size = shards.recipe.sam_size
    for i in range(frames):
        number = None if frames == 1 else i + 1
        masks = members[Field("masks", number)]
        prompts = codec.decode_prompts(members[Field("prompt_masks", number)], shards.recipe.grid)
        for name, count in (("masks", codec.count_masks(masks)), ("prompts", len(prompts))):
            if count != objects:
                raise BadShard(f"number of {name}", met=str(count), wanted=f"{objects}, as in the JSON")
        cells[i] = prompts.sum(axis=(1, 2))
        for begin in range(0, objects, _MASKS):
            some = range(begin, min(begin + _MASKS, objects))
            bits = codec.decode_masks(masks, size, some, packed=True).reshape(len(some), -1)
            areas[i, some.start : some.stop] = np.bitwise_count(bits.view(np.uint64)).sum(axis=1) / size**2
    return areas, cells


def _expressions(meta: dict[str, Any]) -> dict[str, list[str]]:
    """Return the texts of the sample's expressions by the id of each object that they name."""
    named: dict[str, list[str]] = {}
    for item in dicts(meta.get("expressions")):
        ids = item.get("objects")
        if isinstance(item.get("text"), str) and isinstance(ids, list):
            for name in dict.fromkeys(name for name in ids if isinstance(name, str)):
                named.setdefault(name, []).append(_clean(item["text"]))
    return named


def _more(item: dict[str, Any]) -> str:
    """Return the object's other numbers, texts and truth values as JSON, by name."""
    clashing = item.get("source_keys")
    others = {name: value for name, value in item.items() if name not in _COLUMN_NAMES}
    others |= clashing if isinstance(clashing, dict) else {}
    if isinstance(item.get("category"), str):
        others.pop("category", None)
    kept = {name: value for name, value in others.items() if isinstance(value, str | int | float)}
    return json.dumps(kept, sort_keys=True)


def _text(value: Any) -> str | None:
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    """Return the text with half surrogate pairs, which UTF-8 cannot hold, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _schema(manifest: Manifest) -> pa.Schema:
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {"string": pa.string(), "double": pa.float64()}
    kinds |= {"int32": pa.int32(), "int64": pa.int64()}
    kinds |= {f"list<{name}>": pa.list_(kind) for name, kind in kinds.items()}
    about = {"version": _VERSION, "manifest": manifest.checksum}
    fields = [pa.field(name, kinds[kind]) for name, kind in COLUMNS.items()]
    return pa.schema(fields, {_META: json.dumps(about, sort_keys=True)})


def _batches(shards: ShardSet, threads: int, tick: Callable[[int], object]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the set in order, some at a time. `threads` samples are decoded at a time."""
    import pyarrow as pa

    schema = _schema(shards.manifest)

    def make(begin: int, end: int) -> pa.RecordBatch:
        rows = [row for position in range(begin, end) for row in rows_of(shards, position)]
        columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
        return pa.record_batch(arrays, schema)

    waiting: deque[tuple[int, Future[pa.RecordBatch]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for begin in range(0, len(shards), _SAMPLES):
                end = min(begin + _SAMPLES, len(shards))
                waiting.append((end - begin, pool.submit(make, begin, end)))
                if len(waiting) > 2 * threads:
                    count, batch = waiting.popleft()
                    yield batch.result()
                    tick(count)
            for count, batch in waiting:
                yield batch.result()
                tick(count)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_table(folder: Path, threads: int = 1, overwrite: bool = False) -> tuple[int, bool]:
    """Write the table of the set in `folder`, unless it is there.

    A table of another state of the set is replaced. The bytes depend on the set and the version of pyarrow alone.

    Args:
        threads: samples that are decoded at a time.
        overwrite: write it in any case.

    Returns:
        The number of rows, and whether the table was there.

    Raises:
        UserError: the set cannot be read, another file has the table's name, or the folder cannot be written.
    """
    shards = ShardSet(folder)
    path = table_path(folder)
    if not overwrite and _is_current(shards):
        return shards.manifest.objects, True
    lock = folder / f".{TABLE}.lock"
    temporary = folder / f".{TABLE}.tmp"
    try:
        held = hold_lock(lock, exclusive=True)
        try:
            with tqdm(total=len(shards), unit="sample", desc=printable(folder.name), mininterval=0.5) as bar:
                rows = _write(shards, temporary, threads, bar.update)
            if rows != (expected := shards.manifest.objects):
                met, wanted = f"{rows} objects", f"{expected}, as its manifest says"
                raise BadShard("samples and manifest differ", where=str(folder), met=met, wanted=wanted, do=check_set())
            info = TableInfo.of_file(temporary, rows)
            os.replace(temporary, path)
            sync_folder(folder)
            record_table(folder, shards.manifest, TABLE, info)
        finally:
            temporary.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            os.close(held)
    except OSError as error:
        where = str(error.filename or folder)
        raise UserError("cannot write", where=where, met=str(error.strerror or error)) from None
    return rows, False


def _is_current(shards: ShardSet) -> bool:
    """Return whether the table is that of the set's state. One of an older release, that no list names, is listed."""
    path = table_path(shards.folder)
    if not path.exists():
        return False
    try:
        listed = read_tables(shards.folder, shards.manifest).get(TABLE)
    except UserError:
        return False
    if listed is not None and listed.bytes != path.stat().st_size:
        return False
    if _manifest_of(path) != shards.manifest.checksum:
        return False
    if listed is None and os.access(shards.folder, os.W_OK):
        record_table(shards.folder, shards.manifest, TABLE, TableInfo.of_file(path, shards.manifest.objects))
    return True


def _write(shards: ShardSet, path: Path, threads: int, tick: Callable[[int], object]) -> int:
    """Write the file at `path` in row groups of `_ROW_GROUP` rows, and sync it; return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(shards.manifest)
    rows = 0
    with open(path, "wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
            kept: list[pa.RecordBatch] = []

            def write_group(count: int) -> None:
                table = pa.Table.from_batches(kept, schema)
                writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=_ROW_GROUP)
                kept[:] = table.slice(count).combine_chunks().to_batches()

            for batch in _batches(shards, threads, tick):
                rows += len(batch)
                kept.append(batch)
                while sum(map(len, kept)) >= _ROW_GROUP:
                    write_group(_ROW_GROUP)
            if kept:
                write_group(sum(map(len, kept)))
        file.flush()
        os.fsync(file.fileno())
    return rows


def _manifest_of(path: Path) -> str:
    """Return the checksum of the manifest whose table is at `path`; raises `UserError` on a file that is no table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        about = json.loads((schema.metadata or {})[_META])
        if about["version"] == _VERSION and schema.names == [*COLUMNS]:
            return str(about["manifest"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        pass
    do = f"write it again with {command('table PATH --overwrite')}"
    raise UserError("not a table of objects", where=str(path), wanted=f"version {_VERSION}", do=do)


def open_table(shards: ShardSet) -> pq.ParquetFile:
    """Open the table of a set.

    Raises:
        UserError: there is none, or it is of another set or of another state of this one, or `tables.json` does not
            list it. A set without `tables.json`, of an older release, may have a table.
    """
    with extra("pipeline", where=TABLE):
        import pyarrow as pa
        import pyarrow.parquet as pq
    path = shards.table_file(TABLE)
    do = f"write it with {command(f'table {shards.folder}')}"
    if not path.exists():
        raise UserError("no table of its objects", where=str(shards.folder), wanted=TABLE, do=do)
    try:
        check_file(path, read_tables(shards.folder, shards.manifest))
        if (found := _manifest_of(path)) != (expected := shards.manifest.checksum):
            raise UserError("a table of another set", where=str(path), met=found[:16], wanted=expected[:16], do=do)
        # Otherwise the columns of all row groups are read at once.
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        if file.metadata.num_rows != shards.manifest.objects:
            met, wanted = f"{file.metadata.num_rows} rows", f"{shards.manifest.objects} objects"
            raise UserError("rows of the table", where=str(path), met=met, wanted=wanted, do=do)
        return file
    except (pa.ArrowException, OSError) as error:
        raise UserError("not a table of objects", where=str(path), met=str(error)[:80], do=do) from None


def check_table(folder: Path, report: Report, threads: int = 1) -> None:
    """Compare the table of a set, where there is one, with the samples; failures name the key and the column."""
    path = table_path(folder)
    if not path.exists():
        return

    def fail(key: str, column: str, what: str, met: object, wanted: object) -> None:
        report.fail(Failure(str(path), key, column, what, str(met)[:80], str(wanted)[:80]))

    try:
        shards = ShardSet(folder)
        stored = _stored_rows(open_table(shards), path)
        for expected in _batches(shards, threads, lambda count: None):
            names = expected.schema.names
            for wanted in zip(*(expected.column(name).to_pylist() for name in names), strict=True):
                met = next(stored)
                for column, a, b in zip(names, met, wanted, strict=True):
                    if a != b:
                        fail(wanted[0], column, "a value of the table", a, b)
    except UserError as error:
        report.fail(Failure(error.where or str(path), "", "", error.what, error.met, error.wanted or error.do))


def _stored_rows(file: pq.ParquetFile, path: Path) -> Iterator[Row]:
    """Yield the rows of a table; raises `UserError` where it is damaged."""
    for batch in read_batches(file, path, [*COLUMNS], 4096):
        yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)


def read_batches(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], rows: int = _ROW_GROUP
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table in order, at most `rows` at a time; raises `UserError` where it is damaged."""
    import pyarrow as pa

    try:
        yield from file.iter_batches(rows, columns=[*columns])
    except (pa.ArrowException, OSError) as error:
        do = f"write it again with {command(f'table {path.parent} --overwrite')}"
        raise UserError("a damaged table", where=str(path), met=str(error)[:80], do=do) from None
