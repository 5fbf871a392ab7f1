"""Reading the files of a folder at a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from shards.errors import BadShard
from shards.storage.protocols import file_system, protocol_of, without_secrets
from shards.storage.retry import ATTEMPTS, retry_read

_BLOCK_BYTES = 16 << 20  # of an object, for one request; HTTP needs one request per file
_T = TypeVar("_T")


class RemoteFolder:
    """The files of one folder at a URL. Picklable: each process has its own connections.

    Args:
        url: of the folder.
        attempts: at a file, before its fault is an error.

    Raises:
        UserError: as `protocol_of` does.
    """

    def __init__(self, url: str, attempts: int = ATTEMPTS) -> None:
        self.protocol = protocol_of(url)
        self.given = url.rstrip("/")
        """The URL, with what may be secret in it."""
        self.url = without_secrets(self.given)
        """For messages."""
        self._attempts = attempts

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given, self._attempts)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return file_system(self.given)

    @property
    def _files(self) -> Any:
        """fsspec's file system."""
        return self._opened[0]

    def _path(self, name: str) -> str:
        """Return the path of the file `name` in the file system."""
        return f"{self._opened[1]}/{name}".rstrip("/")

    def pieces(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the bytes of the file `name` as they arrive, at most `most` of them.

        Raises what the libraries raise: to be called within `retried`.
        """
        if self.protocol.can_list:
            options: dict[str, Any] = {"block_size": _BLOCK_BYTES, "cache_type": "none"}
        else:
            options = {"block_size": 0, "size": 1}  # HTTP: a stream, without asking for the size first
        with self._files.open(self._path(name), "rb", **options) as file:
            if self.protocol.can_list:  # a range past the end may be refused
                most = min(most, file.size)
            while most > 0 and (piece := file.read(min(most, _BLOCK_BYTES))):
                most -= len(piece)
                yield piece

    def read_at_most(self, name: str, most: int) -> bytes:
        """Return the file `name`; to be called within `retried`.

        Raises:
            BadShard: it has more than `most` bytes.
        """
        data = b"".join(self.pieces(name, most + 1))
        if len(data) > most:
            raise BadShard(
                "too large", where=f"{self.url}/{name}", met=f"more than {most} bytes", wanted=f"<= {most} bytes"
            )
        return data

    def retried(self, name: str, action: Callable[[], _T]) -> _T:
        """Return `action()`, which reads the file `name`; see `retry_read`.

        Raises:
            UserError: the file cannot be read.
        """
        return retry_read(action, f"{self.url}/{name}", self._attempts)

    def has_file(self, name: str) -> bool:
        """Return whether the file `name` exists. Raises `UserError` where that cannot be found out."""

        def exists() -> bool:
            try:
                return bool(self._files.info(self._path(name))["type"] == "file")
            except FileNotFoundError:
                return False

        return self.retried(name, exists)

    def names(self) -> tuple[list[str], list[str]]:
        """Return the sorted names of the files and of the folders directly in this one; none where it does not exist.

        Raises:
            UserError: it cannot be listed.
        """

        def listed() -> tuple[list[str], list[str]]:
            try:
                entries = self._files.ls(self._path(""), detail=True)
            except FileNotFoundError:
                entries = []
            names = [(entry["name"].rstrip("/").rpartition("/")[2], entry["type"]) for entry in entries]
            return sorted(n for n, kind in names if kind == "file"), sorted(n for n, kind in names if kind != "file")

        return self.retried("", listed)

    def child(self, name: str) -> RemoteFolder:
        """Return the folder `name` in this one."""
        return RemoteFolder(f"{self.given}/{name}", self._attempts)
