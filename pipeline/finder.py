"""Finds the files that annotations name, below a dataset's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import BadInput

_COCO_NAME = re.compile(r"(?:.*_)?(\d{12}\.jpg)")
_LONGEST = 255  # bytes of a name
OUTSIDE = "path leaves the dataset"


def inside(name: Any) -> bool:
    """Whether `name` is a relative path that cannot leave the folder it is joined to."""
    if not _can_be_named(name):
        return False
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def below(root: Path, path: str) -> Path:
    """`path` below `root`; raises `BadInput` where it would leave it."""
    if not _can_be_named(path):
        met, wanted = ascii(path)[:80], f"UTF-8, at most {_LONGEST} bytes between slashes"
        raise BadInput("not a file name", met=met, wanted=wanted)
    if not inside(path):
        raise BadInput(OUTSIDE, met=repr(path), wanted="a relative path without ..")
    return root / path


def _can_be_named(name: Any) -> bool:
    """Whether a file can have this name: no operating system takes the others, and Python then raises many kinds."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        return max(map(len, os.fsencode(name).split(b"/"))) <= _LONGEST
    except UnicodeEncodeError:  # half a surrogate pair, out of a JSON
        return False


def coco_names(name: str) -> list[str]:
    """What the picture that annotations call `name` may be called on disk.

    COCO's pictures with and without the prefix of 2014, in one order whatever the name, so that all names of a picture
    find one file.
    """
    last = name.rsplit("/", 1)[-1]
    match = _COCO_NAME.fullmatch(last)
    if match is None:
        return list(dict.fromkeys((name, last)))
    plain = match[1]
    folders = [name.removesuffix(last) + plain] if last != name else []
    return [*folders, plain, f"COCO_train2014_{plain}", f"COCO_val2014_{plain}"]


class PictureFinder:
    """Finds pictures that annotations name, in those of some folders that exist, in their order."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        wanted = [*folders]
        self._folders = [folder for folder in wanted if (root / folder).is_dir()] or wanted[:1]
        self._root = root
        self.find = lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, *names: str) -> tuple[str, int]:
        """The first picture of one of these names: its path relative to the root, and its bytes.

        Where there is none, the path where it might have been, and 0: an input for the ledger.
        """
        for folder in self._folders:
            for name in names:
                try:
                    size = os.stat(self._root / folder / name).st_size
                except OSError:
                    continue
                return (PurePosixPath(folder) / name).as_posix(), size
        return (PurePosixPath(self._folders[0]) / names[0]).as_posix(), 0
