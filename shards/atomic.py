"""Files that stand under their final name only when they are whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes, temporary_folder: Path | None = None) -> None:
    """Write `data` under a temporary name (beside `path`, or in a folder on the same disk), sync it, rename it."""
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
