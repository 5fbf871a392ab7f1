"""The tables of a set that holds samples of another one: `split`, `sample` and `recode` write them.

The rows are those of the source's table, with other positions. Where it has none, they are made of the new samples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.atomic import atomic_write, sync_folder
from shards.errors import UserError
from shards.printable import printable
from shards.processors import usable_processors
from shards.program import command
from shards.reader import ShardSet
from shards.table import open_table, read_batches, sample_batches
from shards.table_file import KINDS, with_positions, write_files
from shards.table_kind import TableKind
from shards.table_list import LIST, TableInfo, pack_tables, read_tables

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def write_copied_tables(
    source: ShardSet, target: ShardSet, positions: NDArray[np.int64], work: Path, same_pixels: bool
) -> None:
    """Write the tables of `target`, then their list. Joined tables are left out, and one line says so.

    Args:
        source: the set that the samples were taken from.
        target: the new set, of which all files but the manifest stand.
        positions: (N,) of its samples in `source`.
        work: folder for files in the making, on the same disk.
        same_pixels: whether the pictures of `target` have the pixels that those of `source` have.

    Raises:
        UserError: a table of `source`, or a sample of `target`, is damaged.
        OSError: a file cannot be written.
    """
    paths = {kind: work / f"{kind.name}.tmp" for kind in KINDS}
    files = {kind: _table_to_follow(source, kind, positions, same_pixels) for kind in KINDS}
    written: dict[TableKind, TableInfo] = {}
    for kind, file in files.items():
        if file is not None:
            written |= write_files(target.manifest, {kind: paths[kind]}, _rows_of_source(source, kind, file, positions))
    if read := [kind for kind, file in files.items() if file is None]:
        names = ", ".join(kind.name for kind in read)
        with tqdm(total=len(target), unit="sample", desc=names, mininterval=0.5) as bar:
            rows = sample_batches(target, read, usable_processors(), bar.update)
            written |= write_files(target.manifest, {kind: paths[kind] for kind in read}, rows)
    for kind, path in paths.items():
        os.replace(path, target.folder / kind.name)
    sync_folder(target.folder)
    entries = {kind.name: written[kind] for kind in KINDS}
    atomic_write(target.folder / LIST, pack_tables(target.manifest, entries), temporary_folder=work)
    _say_left_out(source, target.folder)


def _table_to_follow(
    source: ShardSet, kind: TableKind, positions: NDArray[np.int64], same_pixels: bool
) -> pq.ParquetFile | None:
    """Return the table of the source whose rows are those of the new set in their order; None where there is none."""
    if (kind.of_pictures and not same_pixels) or np.any(np.diff(positions) <= 0):
        return None
    try:
        return open_table(source, kind)
    except UserError:
        return None


def _rows_of_source(
    source: ShardSet, kind: TableKind, file: pq.ParquetFile, positions: NDArray[np.int64]
) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows of the samples at `positions`, numbered by their places there."""
    import pyarrow as pa

    numbers = np.full(len(source), -1)
    numbers[positions] = np.arange(len(positions))
    path = source.folder / kind.name
    for batch in read_batches(file, path, [*kind.columns]):
        moved = numbers[batch.column("position").to_numpy()]
        yield [with_positions(batch, pa.array(moved)).filter(pa.array(moved >= 0))]


def _say_left_out(source: ShardSet, folder: Path) -> None:
    """Name the joined tables of the source, which the new set lacks."""
    try:
        tables = read_tables(source.folder, source.manifest)
    except UserError:
        return
    joined = [f"{name} (of {info.joined.origin})" for name, info in tables.items() if info.joined]
    if joined:
        again = command(f"join {folder} FILE")
        text = f"{folder}: tables that were joined are left out: {', '.join(joined)}; join them again: {again}"
        tqdm.write(printable(text), file=sys.stderr)
