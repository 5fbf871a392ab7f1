"""Where a shard set is written: a folder, or an object store. A file appears whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shards.atomic import atomic_write, sync_folder
from shards.errors import UserError
from shards.format import WORK
from shards.program import command
from shards.storage.protocols import PROTOCOLS, is_hub
from shards.storage.remote_folder import RemoteFolder
from shards.storage.retry import retry

_READ_AT_ONCE = 64  # objects
_T = TypeVar("_T")


class Store(Protocol):
    """The files of one set, by names with forward slashes. Errors are `OSError`s that name the file. Picklable."""

    def __str__(self) -> str:
        """Return the place as the user named it."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write `data` as the file `name`, in place of an earlier one."""
        ...

    def put_file(self, file: Path, name: str) -> None:
        """Put the local `file` under `name`. `LocalFolder` moves it: it must be synced, and be on the same disk."""
        ...

    def read(self, name: str) -> bytes:
        """Return the file `name`; raises `FileNotFoundError` where it does not exist."""
        ...

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the files in order, with a few of them in memory at a time."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of each file directly in `folder`; {} where that does not exist."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, also where they do not exist."""
        ...


class LocalFolder:
    """A folder on a local disk, or on a file system that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.given = str(path)
        """The path as the user gave it."""

    def __str__(self) -> str:
        return self.given

    @property
    def work(self) -> Path:
        """The folder for files in the making."""
        return self.path / WORK

    def put(self, name: str, data: bytes) -> None:
        atomic_write(self.path / name, data, temporary_folder=self.work)

    def put_file(self, file: Path, name: str) -> None:
        os.replace(file, self.path / name)
        sync_folder(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        return map(self.read, names)

    def sizes(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self.path / folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def has_file(self, name: str) -> bool:
        """Return whether the file `name` exists."""
        return (self.path / name).is_file()

    def names(self) -> tuple[list[str], list[str]]:
        """Return the sorted names of the files and of the folders directly in this one. Raises `UserError`."""
        try:
            entries = [(entry.name, entry.is_dir()) for entry in os.scandir(self.path)]
        except OSError as error:
            raise UserError("cannot be read", where=self.given, met=str(error.strerror)) from None
        return sorted(n for n, is_folder in entries if not is_folder), sorted(
            n for n, is_folder in entries if is_folder
        )

    def child(self, name: str) -> LocalFolder:
        """Return the folder `name` in this one."""
        return LocalFolder(Path(self.given, name))


class ObjectStore(RemoteFolder):
    """A folder of an object store. Failed requests are repeated as `shards.storage.retry` says."""

    def put(self, name: str, data: bytes) -> None:
        self._with_retries(name, lambda path: self._files.pipe_file(path, data))

    def put_file(self, file: Path, name: str) -> None:
        self._with_retries(name, lambda path: self._files.put_file(str(file), path))

    def read(self, name: str) -> bytes:
        return self._with_retries(name, lambda path: bytes(self._files.cat_file(path)))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        for start in range(0, len(names), _READ_AT_ONCE):
            batch = names[start : start + _READ_AT_ONCE]
            data = self._with_retries(batch[0], partial(self._read_batch, batch))
            by_name = {path.rpartition("/")[2]: content for path, content in data.items()}
            yield from (by_name[name.rpartition("/")[2]] for name in batch)

    def _read_batch(self, names: Sequence[str], _: str) -> dict[str, bytes]:
        """Return the files by their paths."""
        return dict(self._files.cat([*map(self._path, names)]))

    def sizes(self, folder: str = "") -> dict[str, int]:
        return {name: details["size"] for name, details in self.details(folder).items()}

    def details(self, folder: str = "") -> dict[str, dict[str, Any]]:
        """Return what the store lists of each file directly in `folder`; {} where that does not exist."""
        try:
            entries = self._with_retries(folder, lambda path: self._files.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        return {entry["name"].rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}

    def remove(self, names: Iterable[str]) -> None:
        if paths := [*map(self._path, names)]:
            with suppress(FileNotFoundError):
                self._with_retries("", lambda _: self._files.rm(paths))

    def _with_retries(self, name: str, action: Callable[[str], _T]) -> _T:
        """Return `action(path of the file name)`, retried. Raises `OSError` with the file's URL as its name."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            return retry(lambda: action(self._path(name)), where, self._attempts)
        except UserError:
            raise
        except Exception as error:  # of botocore, aiohttp, google.api_core, ...: they have no family in common
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else getattr(error, "errno", None)
            raise OSError(number or errno.EIO, str(error) or type(error).__name__, where) from error


def store_at(place: str | Path) -> Store:
    """Return the store at a folder or a URL; raises `UserError` where a half-written file could be seen."""
    name, colon, _ = str(place).partition("://")
    if not colon:
        return LocalFolder(Path(place))
    if is_hub(str(place)):
        do = f"write it to a folder, then {command(f'publish FOLDER --to {place}')}"
        raise UserError("a set is not written straight to the hub", where=str(place), do=do)
    if name not in PROTOCOLS or not PROTOCOLS[name].can_write:
        writable = ", ".join(f"{name}://" for name, protocol in PROTOCOLS.items() if protocol.can_write)
        raise UserError(
            "not a place to write a set to: files may be seen there before they are whole",
            where=str(place),
            wanted=f"a folder, or {writable}",
            do="write to a folder and copy it there",
        )
    return ObjectStore(str(place))
