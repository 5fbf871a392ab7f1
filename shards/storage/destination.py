"""Where a finished set is published: a folder, an object store, or (`shards.storage.hub`) the Hugging Face hub.

Unlike a `Store`, which a set is written into while it is made, a destination says which of the files that stand there
are right, so that these are not sent again, and what that was compared by.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.atomic import atomic_file, sync_folder
from shards.checksum import file_sha256
from shards.errors import UserError
from shards.output_folder import make_output_folder
from shards.storage.store import ObjectStore

Tick = Callable[[int], object]
"""Called with a number of bytes that were sent."""
_PIECE = 1 << 20  # bytes
_UPLOADS = 2  # objects at a time; each holds up to 100 MB
_S3_PART = 50 << 20  # bytes of the parts in which s3fs sends a large object


@dataclass(frozen=True)
class Item:
    """A file to publish."""

    name: str
    size: int
    sha256: str
    path: Path | None = None
    """Where it is on this machine."""
    data: bytes = b""
    """Its content, where it has no path."""

    def open(self) -> BinaryIO:
        """Open it for reading."""
        return open(self.path, "rb") if self.path else io.BytesIO(self.data)

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> Item:
        """Return the item of a file that is in memory."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest(), None, data)


class Destination(ABC):
    """A folder, here or elsewhere, that gets the files of one set. All methods raise `UserError`."""

    compared: str
    """How the files there are compared, as text."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the place as it is shown."""

    def prepare(self) -> None:
        """Make the place, where it must exist before files are sent there."""
        return

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file directly there, by name."""

    @abstractmethod
    def right(self, items: Sequence[Item]) -> set[str]:
        """Return the names of the items that stand there with the right content."""

    @abstractmethod
    def send(self, items: Sequence[Item], tick: Tick) -> None:
        """Put the items there, in place of files of the same names."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a small file that stands there."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files that stand there."""


class Folder(Destination):
    """A folder on this machine. A file appears there under its name when it is whole and synced."""

    compared = "SHA-256 of each file, read again"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def prepare(self) -> None:
        make_output_folder(self.path)

    def sizes(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError("cannot be read", where=str(self.path), met=str(error.strerror)) from None

    def right(self, items: Sequence[Item]) -> set[str]:
        sizes = self.sizes()
        standing = [item for item in items if sizes.get(item.name) == item.size]
        return {item.name for item in standing if file_sha256(self.path / item.name) == item.sha256}

    def send(self, items: Sequence[Item], tick: Tick) -> None:
        for item in items:
            path = self.path / item.name
            try:
                with item.open() as source, atomic_file(path, self.path / f".{item.name}.part") as copy:
                    for piece in iter(lambda file=source: file.read(_PIECE), b""):  # type: ignore[misc]
                        copy.write(piece)
                        tick(len(piece))
            except OSError as error:
                raise _cannot_write(str(path), str(error.strerror)) from None

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        sync_folder(self.path)


class Bucket(Destination):
    """A folder of an object store."""

    compared = "MD5 of each object where the store lists it, otherwise SHA-256 of its bytes, read back"

    def __init__(self, url: str) -> None:
        self._store = ObjectStore(url)

    def __str__(self) -> str:
        return str(self._store)

    def sizes(self) -> dict[str, int]:
        with _one_line():
            return self._store.sizes()

    def right(self, items: Sequence[Item]) -> set[str]:
        with _one_line():
            found = self._store.details()
            standing = [item for item in items if found.get(item.name, {}).get("size") == item.size]
            return {item.name for item in standing if self._is_right(item, found[item.name])}

    def _is_right(self, item: Item, details: dict[str, Any]) -> bool:
        """Compare an object of the right size with an item, by its listed MD5 if that agrees, else by reading it."""
        if _listed_md5(details) & _md5s(item):
            return True
        digest = hashlib.sha256()

        def read_back() -> str:
            nonlocal digest
            digest = hashlib.sha256()
            for piece in self._store.pieces(item.name, item.size + 1):
                digest.update(piece)
            return digest.hexdigest()

        return self._store.retried(item.name, read_back) == item.sha256

    def send(self, items: Sequence[Item], tick: Tick) -> None:
        def put(item: Item) -> None:
            if item.path:
                self._store.put_file(item.path, item.name)
            else:
                self._store.put(item.name, item.data)
            tick(item.size)

        with _one_line(), ThreadPoolExecutor(_UPLOADS) as pool:
            sending = [pool.submit(put, item) for item in items]
            try:
                for one in sending:
                    one.result()
            finally:
                for one in sending:
                    one.cancel()

    def read(self, name: str) -> bytes:
        with _one_line():
            return self._store.read(name)

    def remove(self, names: Iterable[str]) -> None:
        with _one_line():
            self._store.remove(names)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn the `OSError` of an `ObjectStore` into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(str(error.filename or ""), str(error.strerror)) from None


def _cannot_write(where: str, met: str) -> UserError:
    return UserError("cannot be written", where=where, met=met, do="the same command goes on")


def _listed_md5(details: dict[str, Any]) -> set[str]:
    """Return the MD5s that an object store lists of an object, hexadecimal: S3's ETag, Google's md5Hash."""
    found = {str(details.get("ETag", "")).strip('"')}
    with suppress(ValueError):
        found.add(base64.b64decode(str(details.get("md5Hash", ""))).hex())
    return found - {""}


def _md5s(item: Item) -> set[str]:
    """Return the MD5 of an item, and what S3 lists for it if it went up in parts, as s3fs sends a large one."""
    whole = hashlib.md5(usedforsecurity=False)
    parts = []
    with item.open() as file:
        while part := file.read(_S3_PART):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    in_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {whole.hexdigest(), f"{in_parts}-{len(parts)}"}
