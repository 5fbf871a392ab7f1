"""The tables of a set that is being finished: put together from the parts that its shards left."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.task import PartInfo, note_name, part_name
from pipeline.workspace import Workspace
from shards.errors import UserError
from shards.manifest import Manifest, sha256
from shards.printable import printable
from shards.processors import usable_processors
from shards.program import command
from shards.reader import ShardSet
from shards.storage.store import LocalFolder
from shards.table import sample_batches
from shards.table_file import KINDS, part_batches, write_files
from shards.table_kind import TableKind
from shards.table_list import LIST, TableInfo, pack_tables

if TYPE_CHECKING:
    import pyarrow as pa

_READ_AT_ONCE = 4  # parts


def write_tables(workspace: Workspace, manifest: Manifest, parts: Sequence[dict[str, PartInfo]]) -> None:
    """Write the tables of a set and then their list. All other files but the manifest stand.

    Where an older release wrote some of the shards, they have no part of a table. It is then made of the tars, if these
    are in a folder; else it is left out. One line says so.

    Args:
        parts: of each shard, by the name of the table.

    Raises:
        UserError: a part is damaged. Its shard is then written again by the next run.
    """
    store = workspace.store
    written: dict[TableKind, TableInfo] = {}
    without = [kind for kind in KINDS if not all(kind.name in shard for shard in parts)]
    for kind in KINDS:
        if kind not in without:
            rows = _part_rows(workspace, manifest, kind, [shard[kind.name] for shard in parts])
            written |= _write(workspace, manifest, [kind], rows)
    if without:
        names = ", ".join(kind.name for kind in without)
        about = f"{store}: an older release wrote shards of this set without rows for {names}"
        if isinstance(store, LocalFolder):
            _say(f"{about}: they are made of the tars")
            shards = ShardSet(store.path, manifest=manifest)
            with tqdm(total=len(shards), unit="sample", desc=names, mininterval=0.5) as bar:
                rows = sample_batches(shards, without, usable_processors(), bar.update)
                written |= _write(workspace, manifest, without, rows)
        else:
            _say(f"{about}: it has none. {command('table')} writes them beside a copy in a folder")
            store.remove(kind.name for kind in without)
    store.put(LIST, pack_tables(manifest, {kind.name: info for kind, info in written.items()}))


def _say(text: str) -> None:
    tqdm.write(printable(text), file=sys.stderr)


def _write(
    workspace: Workspace, manifest: Manifest, kinds: Sequence[TableKind], rows: Iterator[list[pa.RecordBatch]]
) -> dict[TableKind, TableInfo]:
    """Write tables of some kinds into the store; `rows` has a batch for each of them."""
    paths = {kind: workspace.temporary / f"{kind.name}.tmp" for kind in kinds}
    try:
        written = write_files(manifest, paths, rows)
        for kind, path in paths.items():
            workspace.store.put_file(path, kind.name)
        return written
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def _part_rows(
    workspace: Workspace, manifest: Manifest, kind: TableKind, parts: Sequence[PartInfo]
) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows of all parts of a table in order, with a few parts in memory at a time.

    Raises:
        UserError: a part has another checksum than its note says.
    """
    store = workspace.store
    shards = [info.name.removesuffix(".tar") for info in manifest.shards]
    first = 0
    with tqdm(total=manifest.samples, unit="sample", desc=kind.name, mininterval=0.5, delay=2) as bar:
        for begin in range(0, len(shards), _READ_AT_ONCE):
            some = range(begin, min(begin + _READ_AT_ONCE, len(shards)))
            names = [part_name(shards[i], kind.name) for i in some]
            for i, name, data in zip(some, names, store.read_all(names), strict=True):
                if sha256(data) != parts[i].sha256:
                    store.remove([note_name(shards[i])])  # so that it counts as not written
                    do = f"give its {command('shard')} command again: it writes this shard once more"
                    raise UserError("damaged", where=f"{store}/{name}", wanted=f"SHA-256 {parts[i].sha256}", do=do)
                for batch in part_batches(data, first):
                    yield [batch]
                first += manifest.shards[i].samples
                bar.update(manifest.shards[i].samples)
