"""Where a shard set is written: a folder, or an object store. What is put there appears whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from shards.atomic import atomic_write, sync_folder
from shards.errors import UserError

WORK = ".work"
"""Inside an unfinished set: what is known of it, and files in the making."""
# An object in these appears when its last byte has arrived, and not before.
WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_AT_ONCE = 64
_PARTS = 2  # of a large object, of 50 MB each, that a worker has in memory


class Store(Protocol):
    """The files of a set, by names with forward slashes. Errors are `OSError`s that name the file. Picklable."""

    def __str__(self) -> str:
        """The place, as a user names it."""
        ...

    def put(self, name: str, data: bytes) -> None: ...

    def put_file(self, file: Path, name: str) -> None:
        """Put the local `file` under `name`. A folder takes it over: it must be synced, and lie on the same disk."""
        ...

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` where there is no such file."""
        ...

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """The files one by one; a few of them are in memory at a time."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The files that stand directly in `folder`, and their bytes."""
        ...

    def remove(self, names: Iterable[str]) -> None: ...


class Folder:
    """A folder of a local disk or of a file system that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path, self._given = path.absolute(), path

    def __str__(self) -> str:
        return str(self._given)

    @property
    def work(self) -> Path:
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
            with os.scandir(self.path / folder) as found:
                return {one.name: one.stat().st_size for one in found if one.is_file()}
        except FileNotFoundError:
            return {}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)


class Bucket:
    """A place in an object store, through fsspec. Keys and addresses come from where its library looks for them."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # each process has connections of its own

    @cached_property
    def _files(self) -> Any:
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            more = {"max_concurrency": _PARTS} if protocol.startswith("s3") else {}
            return fsspec.filesystem(protocol, use_listings_cache=False, **more)  # others write there too
        except ImportError as error:
            do = "pip install 'sa2va-shards[remote]', or adlfs for Azure"
            raise UserError("a package is missing", where=self.url, met=str(error), do=do) from None

    @contextmanager
    def _errors(self, name: str) -> Iterator[str]:
        """The address of `name`. Whatever a client library raises becomes an `OSError` that names it."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield where
        except UserError:
            raise
        except Exception as error:  # of botocore, aiohttp, google.api_core, ...: they have no family in common
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else getattr(error, "errno", None)
            raise OSError(number or errno.EIO, str(error) or type(error).__name__, where) from error

    def put(self, name: str, data: bytes) -> None:
        with self._errors(name) as where:
            self._files.pipe_file(where, data)

    def put_file(self, file: Path, name: str) -> None:
        with self._errors(name) as where:
            self._files.put_file(str(file), where)

    def read(self, name: str) -> bytes:
        with self._errors(name) as where:
            return bytes(self._files.cat_file(where))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            with self._errors(some[0]):
                found = self._files.cat([f"{self.url}/{name}" for name in some])
            by_name = {address.rpartition("/")[2]: data for address, data in found.items()}
            yield from (by_name[name.rpartition("/")[2]] for name in some)

    def sizes(self, folder: str = "") -> dict[str, int]:
        with self._errors(folder) as where:
            try:
                found = self._files.ls(where, detail=True)
            except FileNotFoundError:
                found = []
            return {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}

    def remove(self, names: Iterable[str]) -> None:
        if addresses := [f"{self.url}/{name}" for name in names]:
            with self._errors(""):
                self._files.rm(addresses)


def store_at(place: str | Path) -> Store:
    """The store at a folder or a URL; raises `UserError` where a half-written file could be seen."""
    protocol, colon, _ = str(place).partition("://")
    if not colon:
        return Folder(Path(place))
    if protocol not in WHOLE:
        wanted, do = f"a folder, or {', '.join(f'{one}://' for one in WHOLE)}", "write to a folder and copy it there"
        what = "not a place to write a set to: files may be seen there before they are whole"
        raise UserError(what, where=str(place), wanted=wanted, do=do)
    return Bucket(str(place))
