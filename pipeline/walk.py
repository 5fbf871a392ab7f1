"""Walk through folders of raw data: links are followed, and hidden files are skipped."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from pipeline.input_files import no_such_file
from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from shards.errors import UserError
from shards.hidden import is_hidden, visible_counterpart

HIDDEN = "hidden files passed over"
HIDDEN_FOLDERS = "hidden folders passed over"
TWICE = "linked folders passed over: their files are found by another path"
OTHER = "files of a kind that is not taken:"
"""Prefix of counts per suffix, for files that may have been meant as data. They are part of a plan's digest."""
NOT_READ = ("files with other suffixes:", "other folders")
"""Prefixes of counts of files and folders that are no data of the source. They are not part of a plan's digest."""
_DEEPEST = 64  # folders below the root
_MOST_SUFFIXES = 12


def walk(
    root: Path,
    is_data: Callable[[str], bool],
    counts: Counter[str],
    records: RecordsWriter,
    resembles: Callable[[str], bool] = lambda name: False,
    folder: str = "",
    depth: int = _DEEPEST,
) -> Iterator[tuple[str, int]]:
    """Yield path relative to `root`, and bytes, of each file below it whose name is data.

    Every folder is entered once, by its path without links, else by the first of its paths in the order of texts, so
    that links cannot loop. A link to nothing whose name is data is a file of 0 bytes: reading it fails.
    Any other one is added as an input that is refused: it may have been a folder of data.

    Args:
        is_data: whether files of a name (the last part of the path) are data.
        counts: counts what is skipped.
        records: gets the links to nothing whose names are no data.
        resembles: whether files of a name may have been meant as data, though they are no data; they are
            counted under `OTHER`, all others under `NOT_READ`.
        folder: where to begin, relative to `root`.
        depth: levels of folders below it to enter.

    Raises:
        UserError: a folder cannot be read.
    """
    entered: set[tuple[int, int]] = set()
    plain = [(folder, 0)]
    linked: list[tuple[str, int]] = []  # a heap: entered after all others, in the order of their paths
    while plain or linked:
        place, level = plain.pop() if plain else heapq.heappop(linked)
        try:
            state = os.stat(root / place)
            if (state.st_dev, state.st_ino) in entered:
                counts[TWICE] += 1
                continue
            entered.add((state.st_dev, state.st_ino))
            with os.scandir(root / place) as entries:
                for entry in entries:
                    path = f"{place}/{entry.name}" if place else entry.name
                    if is_hidden(entry.name):
                        _count_hidden(entry, is_data, counts)
                    elif entry.is_dir(follow_symlinks=False):
                        _enter(plain.append, path, level, depth, counts)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        _enter(lambda item: heapq.heappush(linked, item), path, level, depth, counts)
                    elif is_data(entry.name):
                        yield path, _size(entry)
                    elif is_dangling(entry):
                        refuse(records, path, no_such_file(root / path))
                    else:
                        count_other(entry.name, counts, OTHER if resembles(entry.name) else NOT_READ[0])
        except OSError as error:
            raise UserError("a folder that cannot be read", where=str(root / place), met=str(error.strerror)) from None


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder that are not hidden, sorted; raises `OSError`."""
    return sorted(name for name in os.listdir(folder) if not is_hidden(name))


def matching(root: Path, pattern: str) -> list[Path]:
    """Return the files and folders that match a pattern of `Path.glob`, sorted, without hidden ones."""
    found = sorted(root.glob(pattern))
    return [path for path in found if not any(map(is_hidden, path.relative_to(root).parts))]


def is_dangling(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a link to nothing."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def count_other(name: str, counts: Counter[str], prefix: str = OTHER) -> None:
    """Count a file that is not read, by its suffix, for at most 12 suffixes."""
    suffix = PurePosixPath(name).suffix.lower()
    key = f"{prefix} *{suffix}" if suffix else f"{prefix} without a suffix"
    kinds = sum(known.startswith(prefix) for known in counts)
    counts[key if key in counts or kinds < _MOST_SUFFIXES else f"{prefix} of further suffixes"] += 1


def count_beside(root: Path, read: Collection[str], counts: Counter[str], records: RecordsWriter) -> None:
    """Count the entries of `root` that are not `read`; links to nothing are added as inputs that are refused."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name in read or is_hidden(entry.name):
                continue
            if is_dangling(entry):
                refuse(records, entry.name, no_such_file(root / entry.name))
            elif entry.is_dir():
                counts[NOT_READ[1]] += 1
            else:
                count_other(entry.name, counts, NOT_READ[0])


def _enter(put: Callable[[tuple[str, int]], object], path: str, level: int, depth: int, counts: Counter[str]) -> None:
    if level < depth:
        put((path, level + 1))
    else:
        counts["folders passed over: too deep"] += 1


def _count_hidden(entry: os.DirEntry[str], is_data: Callable[[str], bool], counts: Counter[str]) -> None:
    if entry.is_dir():
        counts[HIDDEN_FOLDERS] += 1
    elif is_data(entry.name) or is_data(visible_counterpart(entry.name)):
        counts[HIDDEN] += 1


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0
