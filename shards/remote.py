"""Shard sets at URLs. Manifest and index are fetched first, all else when it is needed, into a cache here."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from shards.archive import MappedTar
from shards.checksum import Check, file_sha256
from shards.errors import BadShard, UserError
from shards.format import INDEX, MANIFEST
from shards.manifest import MOST_MANIFEST, Manifest, most_index_bytes, read_index
from shards.program import command
from shards.reader import ShardSet
from shards.size import parse_size
from shards.storage.cache import DEFAULT_FOLDER, DEFAULT_LIMIT, Cache, release_file
from shards.storage.protocols import is_url
from shards.storage.remote_folder import RemoteFolder
from shards.storage.retry import MissingFileError, TransientError
from shards.table_list import LIST, MOST_BYTES, parse_tables, read_tables

log = logging.getLogger(__name__)

_OPEN_TARS = 256  # mapped at a time, as for a set on this machine


def open_set(path: Path | str, cache: Cache | None = None, check: Check = "first") -> ShardSet:
    """The shard set in a folder here or at a URL.

    Args:
        cache: where a set at a URL is read through; by default a folder in the user's home that holds at most 200 GB.
        check: as of `ShardSet`.

    Raises:
        UserError: it is not there, or not a finished set.
    """
    if not is_url(path):
        return ShardSet(path, check)
    return RemoteShardSet(str(path), cache or Cache(DEFAULT_FOLDER, parse_size(DEFAULT_LIMIT)), check)


class RemoteShardSet(ShardSet):
    """A shard set at `url`. `folder` is its place in the cache, where not all of its tars are.

    A tar is not evicted between its first read, or its fetch ahead, and its release. Views of it stay readable after
    that.

    Each file is compared with its SHA-256 as it arrives. Samples are compared with the index, too, since a file may
    change in the cache; such a file is fetched again.
    """

    _may_compare_later = False  # what is damaged is fetched again, which is too late once it has been read

    def __init__(self, url: str, cache: Cache, check: Check = "first") -> None:
        self._remote = RemoteFolder(url, cache.attempts)
        self._cache = cache
        self.url = self._remote.url
        folder, manifest = self._fetch_manifest()
        self._index = self._hold_index(folder, manifest, check)
        super().__init__(folder, check)
        # With the open files that keep them in the cache; the least recently used first.
        self._tars: OrderedDict[int, tuple[MappedTar, BinaryIO]] = OrderedDict()
        self._changing = threading.Lock()
        self._renewing = threading.Lock()
        self._fetching_tables = threading.Lock()
        self._tables: dict[str, BinaryIO | None] = {}
        """Tables that were asked for, by name, with the open files that keep them in the cache."""
        self._tar = self.fetch  # type: ignore[assignment]
        release = weakref.WeakMethod(self._release_oldest)
        cache.release_callbacks.append(lambda: (method := release()) is not None and method())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self._cache, self.check)

    def _hold_index(self, folder: Path, manifest: Manifest, check: Check) -> BinaryIO:
        """Return the open index in the cache; fetch it again where it is damaged. The set keeps it mapped."""
        most = most_index_bytes(manifest.samples)
        file = self._cache.hold(self._remote, folder / INDEX, most, manifest.index_sha256, exact=False)
        try:
            read_index(folder, None if check == "never" else manifest.index_sha256)
        except BadShard:
            self._discard(folder / INDEX, file)
            file = self._cache.hold(self._remote, folder / INDEX, most, manifest.index_sha256, exact=False)
        return file

    def table_file(self, name: str) -> Path:
        """See `ShardSet.table_file`. The set keeps the tables that were asked for in the cache."""
        path = self.folder / name
        with self._fetching_tables:
            if not self._tables:
                self._fetch_list()
            if name not in self._tables:
                known = read_tables(self.folder, self.manifest)
                if name not in known:
                    raise UserError("no such table", where=f"{self.url}/{name}", wanted=" or ".join(known))
                info = known[name]
                file = self._cache.hold(self._remote, path, info.bytes, info.sha256)
                if file_sha256(path) != info.sha256:  # it has changed in the cache, or is of an earlier list
                    self._discard(path, file)
                    file = self._cache.hold(self._remote, path, info.bytes, info.sha256)
                self._tables[name] = file
        return path

    def _fetch_list(self) -> None:
        """Fetch the list of tables into the cache, where one of earlier tables may be."""

        def read() -> bytes:
            data = self._remote.read_at_most(LIST, MOST_BYTES)
            try:
                parse_tables(data, f"{self.url}/{LIST}", self.manifest)
            except UserError:
                if data != self._remote.read_at_most(LIST, MOST_BYTES):
                    raise TransientError("two reads of it differ") from None
                raise
            return data

        try:
            data = self._remote.retried(LIST, read)
        except MissingFileError:
            do = f"write it with {command('table PATH')} where the set is, and copy {LIST} there too"
            raise UserError("no table of its objects", where=self.url, wanted=LIST, do=do) from None
        path = self.folder / LIST
        if not path.exists() or path.read_bytes() != data:
            self._cache.write(path, data)
        self._tables[LIST] = None

    def _fetch_manifest(self) -> tuple[Path, Manifest]:
        """Fetch the manifest into the cache; return the set's folder there, and the manifest."""

        def read() -> tuple[Path, bytes]:
            data = self._remote.read_at_most(MANIFEST, MOST_MANIFEST)
            path = self._cache.folder / sha256(data).hexdigest()[:32] / MANIFEST
            # All files are compared with the manifest; the manifest is compared with a second read.
            if not path.exists() and data != self._remote.read_at_most(MANIFEST, MOST_MANIFEST):
                raise TransientError("two reads of it differ")
            return path, data

        try:
            path, data = self._remote.retried(MANIFEST, read)
        except MissingFileError as error:
            if self._remote.protocol.can_list:
                raise
            do = f"{error.do}; a folder of sets cannot be listed over http: give the URL of each set"
            raise MissingFileError(error.what, where=error.where, do=do) from None
        if not path.exists() or path.read_bytes() != data:
            self._cache.write(path, data)
        try:
            return path.parent, Manifest.read(path.parent)
        except BadShard as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            where = f"{self.url}/{MANIFEST}"
            raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted) from None

    def fetch(self, shard: int, ahead: bool = False) -> MappedTar:
        """Return the mapped tar of a shard, from the cache or from the URL. Raises as `Cache.hold`.

        Args:
            ahead: it is not needed yet.
        """
        with self._changing:
            if known := self._tars.get(shard):
                self._tars.move_to_end(shard)
                return known[0]
        info = self.manifest.shards[shard]
        path = self.folder / info.name
        file = self._cache.hold(self._remote, path, info.bytes, info.sha256, ahead=ahead)
        try:
            tar = MappedTar(path, file)
        except BadShard:
            release_file(file)
            raise
        with self._changing:
            if known := self._tars.get(shard):  # from another thread
                release_file(file)
                return known[0]
            self._tars[shard] = tar, file
            if len(self._tars) > _OPEN_TARS:
                release_file(self._tars.popitem(last=False)[1][1])
        return tar

    def _compared(self, tar: MappedTar, shard: int, key: str, offset: int, size: int, expected: int) -> MappedTar:
        for _ in range(2):
            try:
                return super()._compared(tar, shard, key, offset, size, expected)
            except BadShard:
                tar = self._fetch_again(tar, shard)
        return super()._compared(tar, shard, key, offset, size, expected)

    def _fetch_again(self, damaged: MappedTar, shard: int) -> MappedTar:
        """Return the tar of a shard, fetched again unless another thread has already replaced the damaged one."""
        with self._renewing:
            if (tar := self.fetch(shard)) is not damaged:
                return tar  # another thread has fetched it
            with self._changing:
                held = self._tars.pop(shard, None)
            if held:
                self._discard(damaged.path, held[1])
            return self.fetch(shard)

    def _discard(self, path: Path, file: BinaryIO) -> None:
        """Release a damaged file of the cache, and remove it so that it is fetched again."""
        log.warning("%s: it has changed since it was fetched; it is fetched again", path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else another reader has replaced it
                path.unlink()
        release_file(file)

    def release(self, shard: int) -> None:
        """Let the tar of a shard be evicted."""
        with self._changing:
            if known := self._tars.pop(shard, None):
                release_file(known[1])

    def _release_oldest(self) -> bool:
        """Release the least recently used tar and return True, or return False where there is none."""
        with self._changing:
            if not self._tars:
                return False
            release_file(self._tars.popitem(last=False)[1][1])
            return True
