"""Paths and URLs of shard sets: of one set, of a folder of sets, or a pattern such as shards/sav*."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from shards.checksum import Check
from shards.errors import UserError
from shards.format import INDEX, LEDGER, MANIFEST, WORK
from shards.hidden import is_hidden
from shards.reader import ShardSet
from shards.remote import open_set
from shards.storage.cache import Cache
from shards.storage.protocols import is_url
from shards.storage.remote_folder import RemoteFolder
from shards.storage.store import LocalFolder


def open_sets(paths: Sequence[Path | str], cache: Cache | None = None, check: Check = "first") -> list[ShardSet]:
    """Open the shard sets that `find_sets` finds; arguments as of `open_set`."""
    return [open_set(path, cache, check) for path in find_sets(paths, cache)]


def find_sets(paths: Sequence[Path | str], cache: Cache | None = None) -> list[str]:
    """Return the folders and URLs of the shard sets that `paths` name, in order.

    A folder with a manifest is a set. Any other folder stands for the sets directly in it, sorted by name, a pattern
    for the folders that match. A set that is not finished, or an empty folder, counts as a set: opening it is an error
    that says so. Where there is none, the path itself is returned, for the same reason. A set that is also named
    itself, or is found twice, is taken once.

    Args:
        cache: gives the attempts at listing a URL; without one, URLs are returned as they are.

    Raises:
        UserError: nothing matches a pattern; a folder cannot be listed.
    """
    found: list[str] = []
    expanded: list[tuple[str, list[str]]] = [(str(path), _sets_at(str(path), cache)) for path in paths]
    named = {path for path, sets in expanded if sets == [path]}
    for path, sets in expanded:
        found += sets if path in named else [one for one in sets if one not in named and one not in found]
    return found


def _sets_at(path: str, cache: Cache | None) -> list[str]:
    if is_url(path):
        return _sets_at_url(path, cache.attempts) if cache else [path]
    if glob.has_magic(path) and not Path(path).exists():
        matches = [Path(match) for match in sorted(glob.glob(path)) if not is_hidden(Path(match).name)]
        return _sets_in([LocalFolder(match) for match in matches if match.is_dir()], path)
    return (_sets_of(LocalFolder(Path(path))) if Path(path).is_dir() else []) or [path]


def _sets_at_url(url: str, attempts: int) -> list[str]:
    folder = RemoteFolder(url, attempts)
    if not folder.protocol.can_list:
        return [url]
    if glob.has_magic(url):
        parent, _, pattern = url.rstrip("/").rpartition("/")
        folder = RemoteFolder(parent, attempts)
        names = [name for name in folder.names()[1] if fnmatchcase(name, pattern) and not is_hidden(name)]
        return _sets_in([folder.child(name) for name in names], url)
    return _sets_of(folder) or [url]


def _sets_in(folders: Sequence[LocalFolder | RemoteFolder], pattern: str) -> list[str]:
    """Return the sets among the folders that match `pattern`, and directly in them."""
    if sets := [one for folder in folders for one in _sets_of(folder)]:
        return sets
    raise UserError("nothing matches", where=pattern, wanted="folders of shard sets")


def _sets_of(folder: LocalFolder | RemoteFolder) -> list[str]:
    """Return the folder, if it is a set, else the sets directly in it."""
    if folder.has_file(MANIFEST):
        return [folder.given]
    files, subfolders = folder.names()
    if _is_unfinished(files, subfolders):
        return [folder.given]
    children = [folder.child(name) for name in subfolders if not is_hidden(name)]
    return [child.given for child in children if _is_set(child)]


def _is_set(folder: LocalFolder | RemoteFolder) -> bool:
    if folder.has_file(MANIFEST):
        return True
    files, subfolders = folder.names()
    return not (files or subfolders) or _is_unfinished(files, subfolders)


def _is_unfinished(files: Sequence[str], subfolders: Sequence[str]) -> bool:
    tars = any(name.endswith(".tar") and not is_hidden(name) for name in files)
    return tars or WORK in subfolders or INDEX in files or LEDGER in files
