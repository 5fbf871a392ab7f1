"""Writing files that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def sync_folder(folder: Path) -> None:
    """Write the names in `folder` to disk, so that renames survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, temporary: Path) -> Iterator[BinaryIO]:
    """Yield a new file `temporary`, which is synced at the end and renamed to `path`; an exception removes it.

    Raises `OSError`. Both paths are on one disk.
    """
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def atomic_write(path: Path, data: bytes, temporary_folder: Path | None = None) -> None:
    """Write `data` under a temporary name, sync it and rename it to `path`. Raises `OSError`.

    Args:
        temporary_folder: on the disk of `path`; the folder of `path` by default.
    """
    # Unique on all machines that may share the folder.
    temporary = (temporary_folder or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with atomic_file(path, temporary) as file:
        file.write(data)


@contextmanager
def atomic_parquet(path: Path, schema: pa.Schema, temporary_folder: Path | None = None) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a parquet file that is renamed to `path` once it is whole and synced; see `atomic_file`.

    Its temporary name is always the same, so that nothing of a killed process stays beside the file that the next one
    writes. Only one process at a time may write it.

    Args:
        temporary_folder: on the disk of `path`; the folder of `path` by default.
    """
    import pyarrow.parquet as pq

    with (
        atomic_file(path, (temporary_folder or path.parent) / f".{path.name}.tmp") as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer
