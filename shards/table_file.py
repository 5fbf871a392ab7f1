"""Files of tables: written in row groups of one size, from rows that come in pieces of any size.

While a set is written, the rows of each shard are kept as a part: a small file of Arrow's stream format. The parts
become the table when the set is finished.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shards.errors import BadShard
from shards.manifest import Manifest
from shards.object_rows import OBJECTS_TABLE
from shards.pictures_table import PICTURES_TABLE
from shards.program import check_set
from shards.table_kind import Row, TableKind
from shards.table_list import TableInfo

if TYPE_CHECKING:
    import pyarrow as pa

KINDS: tuple[TableKind, ...] = (OBJECTS_TABLE, PICTURES_TABLE)
"""Tables that every new set has."""
ROW_GROUP = 1 << 16  # rows
_PART_ROWS = 1 << 11  # rows of a part that are kept as Python's objects; a batch of it


class TableWriter:
    """Writes a table in row groups of `ROW_GROUP` rows. Memory holds one of them.

    The bytes depend on the rows, the schema and the version of pyarrow alone, not on the pieces that the rows come in.

    Args:
        file: an open file; raises `OSError` where it cannot be written.
        schema: with the metadata.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._schema = schema
        self._kept: list[pa.RecordBatch] = []
        self._waiting = 0  # rows in `_kept`
        self._file = file
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows; the batch has the schema's columns."""
        if not len(batch):
            return
        self._kept.append(batch)
        self._waiting += len(batch)
        while self._waiting >= ROW_GROUP:
            self._write_group(ROW_GROUP)

    def _write_group(self, count: int) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._kept).replace_schema_metadata(self._schema.metadata)
        self._writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=ROW_GROUP)
        self._kept = table.slice(count).combine_chunks().to_batches()
        self._waiting -= count
        self.rows += count

    def close(self) -> None:
        """Write the last rows and the end of the table, and sync the file."""
        if self._waiting:
            self._write_group(self._waiting)
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())


def write_files(
    manifest: Manifest, paths: Mapping[TableKind, Path], batches: Iterable[Sequence[pa.RecordBatch]]
) -> dict[TableKind, TableInfo]:
    """Write tables, each synced; return their entries in the list of tables.

    Args:
        manifest: of the set's state that they belong to.
        paths: of the files, by kind.
        batches: some rows for each of these kinds, again and again.

    Raises:
        BadShard: a table has another number of rows than the manifest says.
        OSError: a file cannot be written.
    """
    checksum = manifest.checksum
    with ExitStack() as opened:
        writers = {}
        for kind, path in paths.items():
            file = opened.enter_context(open(path, "wb"))
            writers[kind] = opened.enter_context(TableWriter(file, kind.schema(checksum)))
        for some in batches:
            for writer, batch in zip(writers.values(), some, strict=True):
                writer.write(batch)
        for writer in writers.values():
            writer.close()
    for kind, writer in writers.items():
        if (expected := kind.count(manifest)) not in (None, writer.rows):
            met, wanted = f"{writer.rows} {kind.what}", f"{expected}, as its manifest says"
            where = str(paths[kind].parent)
            raise BadShard("samples and manifest differ", where=where, met=met, wanted=wanted, do=check_set())
    return {kind: TableInfo.of_file(paths[kind], writer.rows) for kind, writer in writers.items()}


class PartWriter:
    """Collects the rows of one shard. Their `position` is that in the shard."""

    def __init__(self, kind: TableKind) -> None:
        import pyarrow as pa

        self._kind = kind
        self._rows: list[Row] = []
        self._sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._writer = pa.ipc.new_stream(self._sink, kind.plain_schema, options=options)

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a sample."""
        self._rows += rows
        if len(self._rows) >= _PART_ROWS:
            self._write()

    def _write(self) -> None:
        self._writer.write_batch(self._kind.batch(self._rows))
        self._rows = []

    def close(self) -> bytes:
        """Return the bytes of the part."""
        if self._rows:
            self._write()
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


def part_batches(data: bytes, first: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a part.

    Args:
        first: position in the set of the shard's first sample.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.ipc.open_stream(data) as stream:
        for batch in stream:
            yield with_positions(batch, pc.add(batch.column("position"), pa.scalar(first, pa.int64())))


def with_positions(batch: pa.RecordBatch, positions: pa.Array) -> pa.RecordBatch:
    """Return rows with other positions of their samples."""
    number = batch.schema.get_field_index("position")
    return batch.set_column(number, batch.schema.field(number), positions)
