"""The folder that a verb writes into, made or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

from shards.errors import UserError


def make_output_folder(folder: Path) -> None:
    """Make `folder` and its parents where they do not exist.

    Raises:
        UserError: a file is in its place, or nothing can be written there.
    """
    do = "give another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError("a file, not a folder", where=str(error.filename or folder), do=do) from None
    except OSError as error:
        raise UserError(
            "cannot be made", where=str(folder), met=str(error.strerror), wanted="a folder", do=do
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("nothing can be written here", where=str(folder), met="no permission", do=do)


def check_output_folder(folder: Path) -> None:
    """Check that `folder` can be made or written, and make nothing.

    Raises:
        UserError: a file is in its place, or nothing can be written there.
    """
    do = "give another --out"
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError("a file, not a folder", where=str(existing), do=do)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("nothing can be written here", where=str(existing), met="no permission", do=do)


def check_output_file(file: Path) -> None:
    """Make the folder that `file` goes into; raises `UserError` where the file cannot be written."""
    make_output_folder(file.parent)
    if file.is_dir():
        raise UserError("a folder, not a file", where=str(file), do="give the name of a file in it as --out")
