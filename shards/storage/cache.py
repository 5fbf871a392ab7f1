"""Files of remote shard sets on a disk of this machine: whole ones, within a limit, shared by its processes.

    CACHE/.lock                     held while room is made, and while a file gets its name
    CACHE/SET/manifest.json         SET: digest of the manifest
    CACHE/SET/index.npy, *.tar      whole: of the size and with the SHA-256 that the manifest names
    CACHE/SET/*.tar.part            being fetched, of the size that it will have

All claims are `flock`s, which end with the process that holds them, however that ends. Exclusive on NAME.part: this
process fetches it; others wait, and fetch it themselves where it died. Shared on a file: somebody reads it, or will
soon, so it is not evicted until `let_go`. A file that is deleted while it is still mapped stays readable there: there
is no moment at which a reader sees anything but the whole file.
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
from shards.storage.retry import TransientError

_POLL = 0.02  # seconds
_PATIENCE = 120.0  # seconds that a reader waits for others to need less
_PART = ".part"
DEFAULT_FOLDER, DEFAULT_LIMIT = "~/.cache/sa2va-shards", "200GB"


class NoRoom(Exception):
    """Nothing may be evicted now. It may be later."""


class Cache:
    """Args:
    folder: on a disk of this machine; it may hold more than one set.
    limit: bytes that its files take at most.
    fetches: shards that a loader fetches at a time.
    attempts: at a file, before its fault is an error.
    """

    def __init__(self, folder: Path | str, limit: int, fetches: int = 4, attempts: int = 8) -> None:
        self.folder, self.limit = Path(folder).expanduser(), limit
        self.fetches, self.attempts = fetches, attempts
        self.drop: list[Callable[[], bool]] = []
        """Ways to stop reading a file of the cache; each says whether there was one."""
        self.spare = fetches + 1
        """Files for which what is fetched ahead leaves room."""
        self._in_need = 0
        self._counting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its settings: files that this process holds stay with it."""
        return type(self), (self.folder, self.limit, self.fetches, self.attempts)

    def write(self, path: Path, data: bytes) -> None:
        """Put a small file there, which is never evicted."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def hold(
        self, remote: RemoteFolder, path: Path, size: int, sha256: str, *, exact: bool = True, ahead: bool = False
    ) -> BinaryIO:
        """The file `path` of the cache, whole, opened; fetched from `remote` where it is not there.

        It is not evicted until `let_go` of the returned file, or until that and each mapping of it is closed.

        Args:
            size: in bytes. It holds as many, or at most as many where not `exact`.
            ahead: it is not needed yet. Room for `spare` files more is left to those that are.

        Raises:
            NoRoom: there is none, and it is fetched ahead.
            UserError: it cannot be had.
        """
        if size > self.limit:
            met, wanted = f"{self.limit:,} bytes", f">= {size:,} bytes, the size of {path.name}"
            raise UserError("the limit of the cache is too low", where=str(self.folder), met=met, wanted=wanted)
        since = time.monotonic()
        while True:
            if file := _shared(path, size if exact else None):
                return file
            part = path.with_name(path.name + _PART)
            if (claim := _claim(part, create=True)) is None:
                time.sleep(_POLL)  # somebody else fetches it
                continue
            whole = False
            try:
                if path.exists():
                    part.unlink()
                    continue  # it has come in between
                if not self._has_room(claim, size, ahead):
                    part.unlink()
                else:
                    remote.retried(path.name, lambda: _fetch(remote, claim, path, size, sha256, exact))
                    os.fsync(claim)
                    with self._alone():  # who counts what is here sees it under one of the names
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
            self._need_less(path, since)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _has_room(self, claim: int, size: int, ahead: bool) -> bool:
        """Give the open file `claim` its size, once there is room for it. The least recently used files go."""
        if ahead and self._in_need:
            return False
        with self._alone():
            used = []
            for path in self.folder.glob("*/*"):
                with suppress(FileNotFoundError):
                    if path.suffix in (".tar", ".npy", _PART):
                        status = path.stat()
                        used.append((status.st_mtime_ns, path, status.st_size))
            excess = sum(bytes_ for *_, bytes_ in used) + size - self.limit
            wanted = excess + (self.spare * size if ahead else 0)
            claimed: list[int] = []
            leaving: list[Path] = []
            try:
                for _, path, bytes_ in sorted(used):
                    if wanted > 0 and bytes_ and (taken := _claim(path)) is not None:
                        claimed.append(taken)
                        if excess > 0:
                            leaving.append(path)
                        excess -= bytes_
                        wanted -= bytes_
                if wanted > 0:
                    return False
                for path in leaving:
                    path.unlink()
                os.truncate(claim, size)
                return True
            finally:
                for taken in claimed:
                    os.close(taken)

    def _need_less(self, path: Path, since: float) -> None:
        """There is no room for what is needed now: stop reading something else, or wait until others do."""
        with self._counting:
            self._in_need += 1
        try:
            if not any(drop() for drop in self.drop):
                if time.monotonic() - since > _PATIENCE:
                    met, do = f"{self.limit:,} bytes, all of them in use", "raise data.cache_limit"
                    raise UserError("no room in the cache", where=str(path), met=met, do=do)
                time.sleep(_POLL)
        finally:
            with self._counting:
                self._in_need -= 1


def let_go(file: BinaryIO) -> None:
    """Close a file that `Cache.hold` returned: it may be evicted, also where it is still mapped."""
    fcntl.flock(file, fcntl.LOCK_UN)  # a mapping has a descriptor of its own, with the same lock
    file.close()


def _shared(path: Path, size: int | None) -> BinaryIO | None:
    """The file at `path`, opened and locked against eviction; None where it is not there, or not for long."""
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
        path.unlink(missing_ok=True)  # not as it was left here
    if not status.st_nlink or size not in (None, status.st_size):
        file.close()
        return None
    with suppress(PermissionError):  # of another user
        os.utime(file.fileno())  # used now
    return file


def _claim(path: Path, create: bool = False) -> int | None:
    """The file at `path`, opened and locked for this thread alone; None where others have it, or it is not there."""
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
        pass  # the file may have been deleted, or got its final name, in between
    os.close(descriptor)
    return None


def _fetch(remote: RemoteFolder, claim: int, path: Path, size: int, sha256: str, exact: bool) -> None:
    """Fill the open file with what `remote` has; raises `TransientError` unless that is what the manifest says."""
    digest, met = hashlib.sha256(), 0
    os.lseek(claim, 0, os.SEEK_SET)
    for piece in remote.pieces(path.name, size + 1):
        met += len(piece)
        digest.update(piece)
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(claim, view) :]
        except OSError as error:
            raise _cannot_write(path, error) from None
    if met > size or (exact and met < size):
        said = f"{met:,} bytes" if met <= size else f"more than {size:,} bytes"
        raise TransientError("not of the manifest's size", said, f"{size:,} bytes")
    if digest.hexdigest() != sha256:
        raise TransientError("not what the manifest says: SHA-256", digest.hexdigest(), sha256)
    os.truncate(claim, met)


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    do = "make room on this disk, lower data.cache_limit, or choose another data.cache" if full else ""
    return UserError("cannot be written in the cache", where=str(path), met=str(error.strerror), do=do)
