"""Locking a folder, so that one run at a time writes there."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

from shards.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PATIENCE = 10.0  # seconds in which workers of a killed run notice that they are orphaned


def hold_lock(path: Path, exclusive: bool) -> int:
    """Hold the lock file at `path` until the returned descriptor is closed or this process ends.

    The processes of a run share the lock; an exclusive one is only granted when no process of an earlier run is left.
    Where the file system has no locks (Lustre without `flock`, some NFS), it warns and goes on: files stay whole, but
    two runs do not notice each other.

    Raises:
        UserError: another run holds it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        started = time.monotonic()
        while True:
            try:
                _lock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, path)
                break
            except BlockingIOError:
                if time.monotonic() - started > _PATIENCE:
                    os.close(descriptor)
                    do = "wait for it, or stop it"
                    raise UserError("another run is writing here", where=str(path.parent), do=do) from None
                time.sleep(0.05)
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
        os.close(descriptor)  # the file was deleted, and perhaps made again, meanwhile


def share_lock(descriptor: int, path: Path) -> None:
    """Turn the exclusive lock at `path` into a shared one."""
    _lock(descriptor, fcntl.LOCK_SH, path)


def remove_leftovers(lock: Path, others: Iterable[Path] = ()) -> None:
    """Remove the lock file of a killed run, and `others`, files that were written under this lock.

    A run that has nothing to write calls it. It does nothing where there is no lock file, where another run holds it or
    may hold it (the file system has no locks), and where the folder is read-only.

    Args:
        others: looked for when the lock is held.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
            for path in (*others, lock):
                path.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        what = f"{path.parent}: no locks on this file system; see that only one run at a time writes here"
        warnings.warn(what, stacklevel=3)
