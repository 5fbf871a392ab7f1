"""Open files of raw data: regular files alone, of bounded size, and no pointers of Git LFS or git-annex."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from shards.errors import BadInput, UserError
from shards.regular_file import open_regular

MAX_BYTES = 1 << 30
_POINTERS = (b"version https://git-lfs", b"/annex/objects/", b"../.git/annex/")


def open_input(path: Path) -> BinaryIO:
    """Open the regular file at `path` for reading; raises `BadInput` with the reason where it cannot be opened."""
    try:
        return open_regular(path)
    except OSError as error:
        raise _cannot_open(path, error) from None


def read_input(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return a file's bytes; raises `BadInput` where it cannot be read, or is larger than `most` bytes."""
    with open_input(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise _cannot_open(path, error) from None
    if len(data) > most:
        raise BadInput("too large a file", where=str(path), met=f"more than {most} bytes", wanted="at most that")
    return data


def input_state(path: Path) -> os.stat_result:
    """Return size and times of the regular file at `path`; raises `BadInput` where there is none."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise _cannot_open(path, error) from None
    if not stat.S_ISREG(state.st_mode):
        raise no_such_file(path)
    return state


def no_such_file(path: Path) -> BadInput:
    """Return the error for a path with no file to open: it is missing, a link to nothing, a folder or a pipe."""
    if path.is_symlink() and not path.exists():
        return BadInput(
            "a link to nothing",
            where=str(path),
            met=f"{path.name} -> {os.readlink(path)}",
            wanted="a link to a file",
            do="mount or fetch what it points to, or delete the link",
        )
    if path.exists():
        return BadInput(
            "cannot be read",
            where=str(path),
            met="a folder" if path.is_dir() else "a pipe, a socket or a device",
            wanted="a file",
        )
    return BadInput(
        "no such file",
        where=str(path),
        met="nothing there",
        wanted="a file",
        do="its dataset's page in docs/datasets/ says where it is looked for",
    )


def is_pointer(data: bytes) -> bool:
    """Whether a file that begins with `data` is a Git LFS or git-annex pointer to the file that was meant."""
    return data.startswith(_POINTERS)


def refuse_pointer(data: bytes, where: str, error: type[UserError] = BadInput) -> None:
    """Raise `error` where a file's first bytes are those of a pointer to it."""
    if is_pointer(data):
        raise error(
            "a pointer, not the file",
            where=where,
            met="a Git LFS or git-annex pointer",
            wanted="the file itself",
            do="fetch the file itself",
        )


def _cannot_open(path: Path, error: OSError) -> BadInput:
    try:
        is_file = path.is_file()
    except OSError:  # a name that no file can have
        is_file = True
    if not is_file:
        return no_such_file(path)
    return BadInput("cannot be read", where=str(path), met=str(error.strerror), wanted="a file")
