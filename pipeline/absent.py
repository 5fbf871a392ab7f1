"""Why there is no file where one is to be opened."""

from __future__ import annotations

import os
from pathlib import Path

from shards.errors import BadInput


def no_such_file(path: Path) -> BadInput:
    """Says why there is no file to open at `path`: it is missing, or a link to nothing, a folder, a pipe, ..."""
    if path.is_symlink() and not path.exists():
        met, do = f"{path.name} -> {os.readlink(path)}", "mount or fetch what it points to, or delete the link"
        return BadInput("a link to nothing", where=str(path), met=met, wanted="a link to a file", do=do)
    if path.exists():
        met = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        return BadInput("cannot be read", where=str(path), met=met, wanted="a file")
    do = "its dataset's page in docs/datasets/ says where it is looked for"
    return BadInput("no such file", where=str(path), met="nothing there", wanted="a file", do=do)
