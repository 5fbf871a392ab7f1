"""Find the files that annotations name, below a dataset's folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from pipeline.spelling import (
    Parts,
    coco_names,
    identifying_parts,
    is_coco_name,
    look_alike,
    may_be_same,
    parts_of,
    spellings,
    tail,
)
from pipeline.walk import list_names
from shards.errors import BadInput
from shards.hidden import is_hidden

_LONGEST = 255  # bytes of a name
_LISTINGS = 512  # folders whose names are kept
_MOST_NAMES = 1 << 21  # of a folder: a larger one is not searched for alike names
_MOST_COMPARED = 4096  # names, for the nearest name
_MOST_EXPLAINED = 20  # missing files for which the nearest name is searched
OUTSIDE = "path leaves the dataset"
SHARED = "one file for several names"


def inside(name: Any) -> bool:
    """Whether `name` is a relative path that cannot leave the folder it is joined to."""
    if not _can_be_named(name):
        return False
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def below(root: Path, path: str) -> Path:
    """Return `path` below `root`; raises `BadInput` where it would leave the root, or no file can have the name."""
    if not _can_be_named(path):
        raise BadInput(
            "not a file name", met=ascii(path)[:80], wanted=f"UTF-8, at most {_LONGEST} bytes between slashes"
        )
    if not inside(path):
        raise BadInput(OUTSIDE, met=repr(path), wanted="a relative path without ..")
    return root / path


def _can_be_named(name: Any) -> bool:
    """Whether a file can have this name. Other names make Python raise exceptions of many kinds."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        return max(map(len, os.fsencode(name).split(b"/"))) <= _LONGEST
    except UnicodeEncodeError:  # half a surrogate pair, out of a JSON
        return False


class Finder:
    """Finds the files that annotations name, in some folders below a root.

    The name is first tried unchanged in every folder. After a miss the folders are listed, once each, and names are
    compared without differences that a reader cannot see (see `pipeline.spelling`). A name that is alike to two files
    finds neither.

    Args:
        root: the dataset's folder.
        folders: relative to it, in the order in which they are tried.
        bare: whether a file may be found by the last part of its name alone.
    """

    def __init__(self, root: Path, folders: Iterable[str], bare: bool = True) -> None:
        self._root = root
        self._bare = bare
        self._wanted = [*dict.fromkeys(folders)]
        self._folders = [folder for folder in self._wanted if (root / folder).is_dir()] or self._wanted[:1]
        self._claims = _Claims()
        self._ambiguous: dict[str, list[str]] = {}
        self._explained = 0
        self._listing = lru_cache(maxsize=_LISTINGS)(self._list)
        self.find = lru_cache(maxsize=1 << 16)(self._find)

    def add(self, name: str, records: RecordsWriter) -> tuple[str, int, bool]:
        """Add the input that `name` refers to. Returns its path, its bytes (0: no file) and whether it is a new input.

        Where there is no such file the input is refused, with the folders that were searched and the nearest name.
        """
        path, size = self.find(name)
        new = records.add(path, size)
        is_alone = name not in self._claims.late and _can_be_named(name)
        if new and not size and is_alone and not (inside(path) and os.path.lexists(self._root / path)):
            refuse(records, path, self.missing(name))
        return path, size, new

    def refuse_shared(self, records: RecordsWriter) -> int:
        """Refuse files that several different names refer to, and return their number. Call it when all are added."""
        for path, (first, *later) in self._claims.shared.items():
            error = BadInput(
                SHARED,
                met=f"{', '.join((first, *later))} -> {path}"[:300],
                wanted="a file for each",
                do="keep the folders that the names have",
            )
            for one in dict.fromkeys((path, *map(self._place_of_missing, later))):
                refuse(records, one, error)
        return len(self._claims.shared)

    def locate(self, name: str) -> str | None:
        """Return the path, relative to the root, of the file that `name` refers to; None where there is none."""
        return self._as_it_stands(name) or self._look_alike(name)

    def _find(self, name: str) -> tuple[str, int]:
        """Return path relative to the root, and bytes; without a file the expected path, and 0."""
        path = self.locate(name)
        if path is None or not self._claims.claim(path, name):
            return self._place_of_missing(name), 0
        try:
            return path, os.stat(os.path.join(self._root, path)).st_size
        except OSError:  # a link to nothing
            return path, 0

    def _as_it_stands(self, name: str) -> str | None:
        if not inside(name):
            return None
        names = coco_names(name) if self._bare and is_coco_name(name) else [name]
        places = [os.path.join(folder, one) for folder in self._folders for one in names]
        # A link to nothing is better than no file: the error of reading it names what it points to.
        for is_there in (os.path.exists, os.path.islink):
            for place in places:
                if is_there(os.path.join(self._root, place)):
                    return PurePosixPath(place).as_posix()
        return None

    def _look_alike(self, name: str) -> str | None:
        if not _can_be_named(name):
            return None
        whole = parts_of(name)[0]
        for spelling in spellings(name, self._bare):
            paths = [path for folder in self._alike_folders if (path := self._descend(folder, spelling)) is not None]
            files = [path for path in paths if os.path.isfile(self._root / path)]
            if len(spelling) < len(whole) and len({_identity(self._root / path) for path in files}) > 1:
                self._ambiguous[name] = files  # without its folder the name fits several files
                return None
            if files:
                return files[0]
        return None

    @cached_property
    def _alike_folders(self) -> list[str]:
        """The folders that exist, also under names that are alike to those asked for."""
        found = (self._descend("", PurePosixPath(folder).parts) for folder in self._wanted)
        return [*dict.fromkeys(path for path in found if path is not None)]

    def _descend(self, path: str, parts: Sequence[str]) -> str | None:
        """Return the path below `path` whose parts are alike to `parts`; None where there is none, or several."""
        for part in parts:
            names = self._listing(path)
            name = part if part in names.stored else names.alike.get(look_alike(part))
            if name is None:
                return None
            path = f"{path}/{name}" if path else name
        return path

    def _list(self, folder: str) -> _FolderNames:
        try:
            names = list_names(self._root / folder)
        except OSError:
            names = []
        return _FolderNames(names if len(names) <= _MOST_NAMES else [])

    def _place_of_missing(self, name: str) -> str:
        return (PurePosixPath(self._folders[0]) / name).as_posix() if inside(name) else name

    def missing(self, name: str) -> BadInput:
        """Return the error for a missing file, with the folders that were searched and the nearest name in them."""
        if name in self._ambiguous:
            return BadInput(
                "a name of several files",
                met=f"{name!r}: {', '.join(sorted(self._ambiguous[name]))}"[:300],
                wanted="one",
                do="keep the folders that the names have",
            )
        folders = ", ".join(str(PurePosixPath(folder)) for folder in self._folders)
        value = f"no {name!r} in {folders}"
        if nearest := self._nearest(name):
            value += f"; the nearest name is {nearest!r}"
        return BadInput(
            "no such file" if inside(name) else OUTSIDE,
            met=value,
            wanted="a file of this name below the dataset's folder",
            do="its dataset's page in docs/datasets/ says where it is looked for",
        )

    def _nearest(self, name: str) -> str:
        """Return the path of the file whose name is most like `name`; empty for none, and after many searches."""
        self._explained += 1
        if self._explained > _MOST_EXPLAINED:
            return ""
        last = look_alike((spellings(name, False) or [(name,)])[0][-1])
        close = difflib.get_close_matches(last, self._some_files, n=1, cutoff=0.4)
        return self._some_files[close[0]] if close else ""

    @cached_property
    def _some_files(self) -> dict[str, str]:
        """Key of a name (`look_alike`) -> path, for the first files below the root."""
        found: dict[str, str] = {}
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                if not is_hidden(name) and not name.endswith((".json", ".csv")):
                    found.setdefault(look_alike(name), (Path(folder) / name).relative_to(self._root).as_posix())
            if len(found) >= _MOST_COMPARED:
                break
        return dict([*found.items()][:_MOST_COMPARED])


def locate_file(root: Path, name: str) -> Path:
    """Return the file that `name` refers to: a path relative to `root`, or one that is alike to it.

    Raises:
        BadInput: there is none, or it is outside of the root.
    """
    if inside(name) and os.path.lexists(root / name):
        return root / name
    found = finder_at(root).locate(name)
    if found is None and not _can_be_named(name):
        return below(root, name)
    if found is None:
        raise finder_at(root).missing(name)
    return root / found


@lru_cache(maxsize=4)
def finder_at(root: Path) -> Finder:
    """Return a finder of paths relative to `root`, with all their folders; cached with the folders that it listed."""
    return Finder(root, [""], bare=False)


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        state = os.stat(path)
    except OSError:
        return str(path)
    return state.st_dev, state.st_ino


class _FolderNames:
    """The names in a folder."""

    def __init__(self, names: Sequence[str]) -> None:
        self.stored = frozenset(names)
        self.alike: dict[str, str | None] = {}
        """Key of a name (`look_alike`) -> name; None where two names are alike."""
        for name in names:
            key = look_alike(name)
            self.alike[key] = None if key in self.alike else name


class _Claims:
    """Names by which each file was found. Two names may refer to one file only where one is the end of the other."""

    def __init__(self) -> None:
        # A name that is the end of its path is kept as the number of its parts: there are millions of them.
        self._ends: dict[int, int] = {}
        self._others: dict[str, Parts] = {}
        self.shared: dict[str, list[str]] = {}
        """Path -> the first name that found it, and those that cannot refer to the same file."""
        self.late: set[str] = set()
        """The latter, for all paths."""

    def claim(self, path: str, name: str) -> bool:
        """Whether the file at `path` can be the one that `name` refers to, given the names before."""
        parts = identifying_parts(name)
        count = len(PurePosixPath(name).parts)
        before = self._others.get(path)
        if before is None and hash(path) in self._ends:
            before = identifying_parts(tail(path, self._ends[hash(path)]))
        if before is not None and not may_be_same(parts, before):
            names = self.shared.setdefault(path, ["/".join(before)])
            if name not in self.late:
                self.late.add(name)
                names.append(name)
            return False
        if tail(path, count) == name:
            self._ends.setdefault(hash(path), count)
        else:
            self._others.setdefault(path, parts)
        return True
