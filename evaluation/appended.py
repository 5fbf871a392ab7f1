"""Files of lines that several processes write together, each line once, after any kill.

Lines are only ever appended, each whole and under a lock, so that a killed run goes on and several processes share a
file. A last line that was torn is cut off before the next one is written.
"""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from shards.errors import UserError

Line = TypeVar("Line")
_PIECE = 16 << 20  # bytes that are read at a time, and more where a line is longer


class AppendedFile(ABC, Generic[Line]):
    """A file of lines that any number of processes append to; a subclass knows the lines."""

    def __init__(self, path: Path) -> None:
        """Open the file; it is made where there is none. A torn last line is cut off by the first append."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._read = 0
        self._lines = 0
        self.refresh()

    @abstractmethod
    def parse(self, line: bytes, where: str) -> Line:
        """Return what a line, with or without its line end, says. Raises `UserError` where it breaks the format."""

    @abstractmethod
    def to_bytes(self, line: Line) -> bytes:
        """Return a line of the file, with its line end."""

    @abstractmethod
    def note(self, line: Line, begin: int, length: int) -> None:
        """Note that the file holds a line: `length` bytes from the byte `begin` on."""

    @abstractmethod
    def is_noted(self, line: Line) -> bool:
        """Whether the file is known to hold a line about the same."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read(self, begin: int, length: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._descriptor, length, begin)

    def refresh(self) -> None:
        """Note the lines that were appended since the last call, by any process.

        Raises:
            UserError: a line breaks the format.
        """
        self._refresh()

    def append(self, lines: Sequence[Line]) -> None:
        """Append the lines that the file does not hold yet, and write them to disk."""
        with self._locked():
            self._repair(self._refresh())
            self._refresh()
            data = b"".join(self.to_bytes(line) for line in lines if not self.is_noted(line))
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
            self._refresh()

    def _refresh(self) -> bytes:
        """Note the whole lines that were appended; return what follows the last of them."""
        size = _PIECE
        while True:
            data = os.pread(self._descriptor, size, self._read)
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.split(b"\n")[:-1]:
                self._lines += 1
                if line.strip():
                    self.note(self.parse(line, f"{self.path}, line {self._lines}"), self._read, len(line))
                self._read += len(line) + 1
            if not whole and len(data) < size:
                return data
            size = size if whole else 2 * size

    def _repair(self, torn: bytes) -> None:
        """End the last line where only its line end is missing; cut it off where it is torn."""
        if not torn:
            return
        try:
            self.parse(torn, str(self.path))
        except UserError:
            os.ftruncate(self._descriptor, self._read)
        else:
            os.write(self._descriptor, b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: an append is one write, and a line counts once all the same
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class Claims:
    """Which process works on which group of items: a lock on a byte of a file for each group.

    A lock ends with its process, so the work of a killed one is free at once. Where a file system has no locks every
    claim is granted: groups may be answered twice, and count once.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextmanager
    def claim(self, group: int) -> Iterator[bool]:
        """Claim a group for the time of the context, which gets whether it was free."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, group)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:
            yield True
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, group)

    def close(self) -> None:
        """Close the file, and give up all claims."""
        os.close(self._descriptor)
