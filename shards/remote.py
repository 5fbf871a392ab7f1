"""Shard sets at URLs: manifest and index are fetched first, tars when they are needed, into a cache on this machine."""

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
from shards.checksum import Check
from shards.errors import BadShard
from shards.format import INDEX, MANIFEST
from shards.manifest import MOST_MANIFEST, Manifest, most_index_bytes, read_index
from shards.reader import ShardSet
from shards.size import parse_size
from shards.storage.cache import DEFAULT_FOLDER, DEFAULT_LIMIT, Cache, let_go
from shards.storage.protocols import is_url
from shards.storage.remote_folder import RemoteFolder
from shards.storage.retry import MissingFileError, TransientError

log = logging.getLogger(__name__)

_OPEN_TARS = 256  # mapped at a time, as of a set on this machine


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

    A tar is not evicted from when it is read, or fetched ahead, to when it is released. Views of
    it stay whole after that.

    Each file is compared with its SHA-256 as it arrives. Samples are compared with the index like those of a set on
    this machine, since a file may have changed in the cache after that; such a file is fetched once more.
    """

    _may_compare_later = False  # what is damaged is fetched again, which is too late once it has been read

    def __init__(self, url: str, cache: Cache, check: Check = "first") -> None:
        self._remote, self._cache = RemoteFolder(url, cache.attempts), cache
        self.url = self._remote.url
        folder, manifest = self._fetch_manifest()
        self._index = self._hold_index(folder, manifest, check)
        super().__init__(folder, check)
        # With the files that hold them in the cache; the least recently used first.
        self._tars: OrderedDict[int, tuple[MappedTar, BinaryIO]] = OrderedDict()
        self._changing = threading.Lock()
        self._renewing = threading.Lock()
        self._tar = self.fetch  # type: ignore[assignment]
        drop = weakref.WeakMethod(self._drop)
        cache.drop.append(lambda: (method := drop()) is not None and method())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self._cache, self.check)

    def _hold_index(self, folder: Path, manifest: Manifest, check: Check) -> BinaryIO:
        """The index in the cache, held as long as the set, for it is mapped; fetched again where it was damaged."""
        most = most_index_bytes(manifest.samples)
        file = self._cache.hold(self._remote, folder / INDEX, most, manifest.index_sha256, exact=False)
        try:
            read_index(folder, None if check == "never" else manifest.index_sha256)
        except BadShard:
            self._forget(folder / INDEX, file)
            file = self._cache.hold(self._remote, folder / INDEX, most, manifest.index_sha256, exact=False)
        return file

    def _fetch_manifest(self) -> tuple[Path, Manifest]:
        """The set's folder in the cache, with its manifest in it."""

        def read() -> tuple[Path, bytes]:
            data = self._remote.read_at_most(MANIFEST, MOST_MANIFEST)
            path = self._cache.folder / sha256(data).hexdigest()[:32] / MANIFEST
            # All else is checked against the manifest, and the manifest against itself.
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
        """The tar of this shard, mapped, from the cache or else from the URL; raises as `Cache.hold` does."""
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
            let_go(file)
            raise
        with self._changing:
            if known := self._tars.get(shard):  # from another thread
                let_go(file)
                return known[0]
            self._tars[shard] = tar, file
            if len(self._tars) > _OPEN_TARS:
                let_go(self._tars.popitem(last=False)[1][1])
        return tar

    def _compared(self, tar: MappedTar, shard: int, key: str, offset: int, size: int, wanted: int) -> MappedTar:
        for _ in range(2):
            try:
                return super()._compared(tar, shard, key, offset, size, wanted)
            except BadShard:
                tar = self._renewed(tar, shard)
        return super()._compared(tar, shard, key, offset, size, wanted)

    def _renewed(self, damaged: MappedTar, shard: int) -> MappedTar:
        """The shard's tar, fetched once more if the cache still holds the damaged one."""
        with self._renewing:
            if (tar := self.fetch(shard)) is not damaged:
                return tar  # another thread has fetched it
            with self._changing:
                held = self._tars.pop(shard, None)
            if held:
                self._forget(damaged.path, held[1])
            return self.fetch(shard)

    def _forget(self, path: Path, file: BinaryIO) -> None:
        """Let go of a damaged file of the cache, and remove it so that it is fetched again."""
        log.warning("%s: it has changed since it was fetched; it is fetched again", path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else another reader has replaced it
                path.unlink()
        let_go(file)

    def release(self, shard: int) -> None:
        """The tar of this shard is not needed for now: it may be evicted."""
        with self._changing:
            if known := self._tars.pop(shard, None):
                let_go(known[1])

    def _drop(self) -> bool:
        """Release the tar that was not used for the longest time, if there is one."""
        with self._changing:
            if not self._tars:
                return False
            let_go(self._tars.popitem(last=False)[1][1])
            return True
