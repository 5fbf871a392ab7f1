"""Opening regular files only: opening a named pipe may wait for ever, and reading a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Path | str) -> None:
    """Raise `OSError` if `path` is a pipe, a device or a socket; for libraries that open files themselves."""
    _refuse_special(os.stat(path).st_mode, path)


def open_regular(path: Path | str) -> BinaryIO:
    """Open the regular file at `path` for reading, without ever waiting for a writer.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a device or a socket; `strerror` says which.
    """
    check_regular(path)  # opening a device may have side effects
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        _refuse_special(mode, path)  # it may have been replaced meanwhile
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, most: int = -1) -> bytes:
    """Return the bytes of the regular file at `path`, at most `most` of them. Raises `OSError` as `open_regular`."""
    with open_regular(path) as file:
        return file.read(most)


def _refuse_special(mode: int, path: Path | str) -> None:
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
