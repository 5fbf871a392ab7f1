"""Writing files that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Write the names in `folder` to disk, so that renames survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes, temporary_folder: Path | None = None) -> None:
    """Write `data` under a temporary name, sync it and rename it to `path`. Raises `OSError`.

    Args:
        temporary_folder: on the disk of `path`; the folder of `path` by default.
    """
    # Unique on all machines that may share the folder.
    temporary = (temporary_folder or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
