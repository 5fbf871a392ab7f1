"""A cache for files of remote shard sets on a disk of this machine, shared by its processes and limited in size.

    CACHE/.lock                     held while files are evicted, and while a file gets its final name
    CACHE/SET/manifest.json         SET: digest of the manifest
    CACHE/SET/index.npy, *.tar      whole: with the size and SHA-256 of the manifest
    CACHE/SET/tables.json           as small as the manifest; the tables that it lists are *.parquet
    CACHE/SET/*.part                being fetched; already of its final size

All locks are `flock`s, which end with the process that holds them. An exclusive lock on NAME.part: its holder fetches
the file; others wait, and fetch it themselves if the holder dies. A shared lock on a file: it is read now or soon, so
it is not evicted before `release_file`. A mapped file that is deleted stays readable, so a reader only ever sees the
whole file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from shards.atomic import atomic_write, sync_folder
from shards.errors import UserError
from shards.storage.remote_folder import RemoteFolder
from shards.storage.retry import ATTEMPTS, TransientError

_POLL = 0.02  # seconds
_PATIENCE = 120.0  # seconds that a reader waits for others to release files
_PART = ".part"
DEFAULT_FOLDER = "~/.cache/sa2va-shards"
DEFAULT_LIMIT = "200GB"


class NoRoom(Exception):
    """The cache is full, and no file may be evicted now."""


class Cache:
    """Whole files of remote sets, fetched when they are needed.

    Args:
        folder: on a local disk; it may hold several sets.
        limit: largest total size of its files, in bytes.
        fetches: shards that a loader fetches at the same time.
        attempts: at a file, before its fault is an error.
    """

    def __init__(self, folder: Path | str, limit: int, fetches: int = 4, attempts: int = ATTEMPTS) -> None:
        self.folder = Path(folder).expanduser()
        self.limit = limit
        self.fetches = fetches
        self.attempts = attempts
        self.release_callbacks: list[Callable[[], bool]] = []
        """Called when the cache is full; each releases one mapped tar and returns True, or returns False."""
        self.spare = fetches + 1
        """Number of files for which fetching ahead leaves room."""
        self._in_need = 0
        self._counting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its settings: files that this process holds stay with it."""
        return type(self), (self.folder, self.limit, self.fetches, self.attempts)

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file that is never evicted; raises `UserError` where the disk refuses it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def hold(
        self, remote: RemoteFolder, path: Path, size: int, sha256: str, *, exact: bool = True, ahead: bool = False
    ) -> BinaryIO:
        """Open the whole file at `path` of the cache; fetch it from `remote` if it is missing.

        The file is not evicted before `release_file` is called, or the file and all its mappings are closed.

        Args:
            size: of the file in bytes; its largest size where not `exact`.
            ahead: the file is not needed yet: leave room for `spare` more files.

        Raises:
            NoRoom: the cache is full, and the file is fetched ahead.
            UserError: the file cannot be fetched or stored.
        """
        if size > self.limit:
            raise UserError(
                "the limit of the cache is too low",
                where=str(self.folder),
                met=f"{self.limit:,} bytes",
                wanted=f">= {size:,} bytes, the size of {path.name}",
            )
        since = time.monotonic()
        while True:
            if file := _open_shared(path, size if exact else None):
                return file
            part = path.with_name(path.name + _PART)
            if (claim := _lock_exclusive(part, create=True)) is None:
                time.sleep(_POLL)  # another process fetches it
                continue
            whole = False
            try:
                if path.exists():
                    part.unlink()
                    continue  # another process has fetched it meanwhile
                if not self._has_room(claim, size, ahead):
                    part.unlink()
                else:
                    remote.retried(path.name, lambda: _fetch(remote, claim, path, size, sha256, exact))
                    os.fsync(claim)
                    with self._locked():  # whoever adds up the sizes sees the file under one of its names
                        os.rename(part, path)
                    sync_folder(path.parent)
                    fcntl.flock(claim, fcntl.LOCK_SH)
                    whole = True
                    return os.fdopen(claim, "rb")
            except OSError as error:
                raise _cannot_write(path, error) from None
            except UserError:
                part.unlink(missing_ok=True)
                raise
            finally:
                if not whole:
                    os.close(claim)
            if ahead:
                raise NoRoom
            self._free_room(path, since)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _has_room(self, claim: int, size: int, ahead: bool) -> bool:
        """Give the open file `claim` its size and return True, if files that are not in use can make room for it.

        The least recently used files are evicted first.
        """
        if ahead and self._in_need:
            return False
        with self._locked():
            used = []
            for path in self.folder.glob("*/*"):
                with suppress(FileNotFoundError):
                    if path.suffix in (".tar", ".npy", ".parquet", _PART):
                        status = path.stat()
                        used.append((status.st_mtime_ns, path, status.st_size))
            excess = sum(bytes_ for *_, bytes_ in used) + size - self.limit
            needed = excess + (self.spare * size if ahead else 0)
            locked: list[int] = []
            evicted: list[Path] = []
            try:
                for _, path, bytes_ in sorted(used):
                    if needed > 0 and bytes_ and (descriptor := _lock_exclusive(path)) is not None:
                        locked.append(descriptor)
                        if excess > 0:
                            evicted.append(path)
                        excess -= bytes_
                        needed -= bytes_
                if needed > 0:
                    return False
                for path in evicted:
                    path.unlink()
                os.truncate(claim, size)
                return True
            finally:
                for descriptor in locked:
                    os.close(descriptor)

    def _free_room(self, path: Path, since: float) -> None:
        """Release a file of this process, or wait for others to release one; raises `UserError` after two minutes."""
        with self._counting:
            self._in_need += 1
        try:
            if not any(release() for release in self.release_callbacks):
                if time.monotonic() - since > _PATIENCE:
                    raise UserError(
                        "no room in the cache",
                        where=str(path),
                        met=f"{self.limit:,} bytes, all of them in use",
                        do="raise data.cache_limit",
                    )
                time.sleep(_POLL)
        finally:
            with self._counting:
                self._in_need -= 1


def release_file(file: BinaryIO) -> None:
    """Close a file that `Cache.hold` returned. It may be evicted then, even while it is mapped."""
    fcntl.flock(file, fcntl.LOCK_UN)  # a mapping has a descriptor of its own, with the same lock
    file.close()


def _open_shared(path: Path, size: int | None) -> BinaryIO | None:
    """Open the file at `path` and lock it against eviction; None where it does not exist or is being evicted."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        time.sleep(_POLL)
        return None
    status = os.fstat(file.fileno())
    if size is not None and status.st_size != size and status.st_nlink:
        path.unlink(missing_ok=True)  # changed since it was written
    if not status.st_nlink or size not in (None, status.st_size):
        file.close()
        return None
    with suppress(PermissionError):  # a file of another user
        os.utime(file.fileno())  # last used now
    return file


def _lock_exclusive(path: Path, create: bool = False) -> int | None:
    """Open the file at `path` and lock it for this thread alone; None where others hold it or it does not exist."""
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # the file may have been deleted or renamed meanwhile
    os.close(descriptor)
    return None


def _fetch(remote: RemoteFolder, claim: int, path: Path, size: int, sha256: str, exact: bool) -> None:
    """Fill the open file from `remote`; raises `TransientError` unless size and SHA-256 are the manifest's."""
    digest = hashlib.sha256()
    received = 0
    os.lseek(claim, 0, os.SEEK_SET)
    for piece in remote.pieces(path.name, size + 1):
        received += len(piece)
        digest.update(piece)
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(claim, view) :]
        except OSError as error:
            raise _cannot_write(path, error) from None
    if received > size or (exact and received < size):
        text = f"{received:,} bytes" if received <= size else f"more than {size:,} bytes"
        raise TransientError("not of the manifest's size", text, f"{size:,} bytes")
    if digest.hexdigest() != sha256:
        raise TransientError("not what the manifest says: SHA-256", digest.hexdigest(), sha256)
    os.truncate(claim, received)


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    do = "make room on this disk, lower data.cache_limit, or choose another data.cache" if full else ""
    return UserError("cannot be written in the cache", where=str(path), met=str(error.strerror), do=do)
