"""Sizes and times of the raw files that decide samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pipeline.boundary import input_errors
from shards.errors import BadInput

if TYPE_CHECKING:
    from pipeline.dataset import Job


class FileState(NamedTuple):
    """State of a file as the file system has it; (-1, 0, 0) where there is none."""

    bytes: int
    modified: int
    """Time of its content, in ns."""
    newest: float
    """The newest of all its times, in s."""


class FileStates:
    """The states of a dataset's files. Each file is asked for about once: many inputs lie in one tar, or one video."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._state = lru_cache(maxsize=1 << 12)(self._stat)

    def of_input(self, path: str) -> Iterator[tuple[str, FileState]]:
        """Yield name (relative to the root) and state of each file that decides the sample of the input at `path`."""
        job = self._job
        names: list[str] = []
        try:
            with input_errors(job.root, path):
                names = [*dict.fromkeys(job.source.files(path, job.records.each_part(path)))]
        except BadInput:
            pass  # it goes to the ledger when its turn comes, whatever its files are
        for name in names:
            yield name, self._state(name)

    def _stat(self, name: str) -> FileState:
        try:
            found = os.stat(os.path.join(self._job.root, name))
        except (OSError, ValueError):
            return FileState(-1, 0, 0.0)
        return FileState(found.st_size, found.st_mtime_ns, max(found.st_mtime, found.st_ctime))
