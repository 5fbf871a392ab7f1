"""Fetches shards of remote sets in the background, in the order in which a loader needs them."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.reader import ShardSet
from shards.remote import RemoteShardSet
from shards.storage.cache import Cache, NoRoom

log = logging.getLogger(__name__)

Positions = NDArray[np.int64]

_PAUSE = 0.2  # seconds before it is tried again whether the cache has room


def check_cache_size(cache: Cache | None, sets: Sequence[ShardSet], window: int) -> None:
    """Raise `UserError` unless the cache can hold any two windows of shards of the remote `sets`, and some spare ones.

    Samples of a window's shards are mixed, so all of these shards are needed until the window's end, and the next
    window's should be there by then. The spare ones keep a reader of other samples, such as held-out ones, from waiting
    for shards that another process has fetched ahead.
    """
    remote = [s for s in dict.fromkeys(sets) if isinstance(s, RemoteShardSet)]
    sizes = sorted(info.bytes for s in remote for info in s.manifest.shards)[
        -2 * window - (cache.spare if cache else 0) :
    ]
    needed = sum(sizes) + sum(s.index.nbytes for s in remote)
    if cache and cache.limit < needed:
        raise UserError(
            "the cache is too small",
            where="data.cache_limit",
            met=f"{cache.limit / 1e9:,.2f} GB",
            wanted=f">= {needed / 1e9:,.2f} GB, so that {len(sizes)} shards fit: those whose samples are mixed, and "
            "the next",
            do="raise it, or write smaller shards (--shard-size)",
        )


class ShardFetcher:
    """Fetches the shards that a loader will read, and releases those that it has read.

    Args:
        sets: the loader's sets; a repeated set is there several times.
        starts: first position of each set.
        positions: positions of the samples that will be read, in that order.
        depth: most shards held at a time.
        fetches: shards fetched at a time.
        following: returns the positions that will be read after these; called when all shards of these are fetched.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        starts: Positions,
        positions: Positions,
        depth: int,
        fetches: int,
        following: Callable[[], Positions] | None = None,
    ) -> None:
        self._sets = sets
        self._starts = starts
        self._depth = depth
        self._fetches = fetches
        self._following = following
        self._uses: list[_Use] = []  # by when they begin
        self._ends: deque[_Use] = deque()  # by when they end
        self._next = 0
        self._over = 0
        self._closed = False
        self._current = Counter[tuple[RemoteShardSet, int]]()  # uses whose fetch has begun and that are not over
        self._changed = threading.Condition()
        self._add(positions, 0)

    def consumed(self, count: int) -> None:
        """Release the shards that are not needed any more after `count` samples have been read."""
        with self._changed:
            while self._ends and self._ends[0].end < count:
                use = self._ends.popleft()
                use.over = True
                self._over += 1
                self._current[use.place] -= use.begun
                self._release(use)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop fetching and release all shards. Those that are being fetched still come into the cache."""
        with self._changed:
            self._closed = True
            self._current.clear()  # shards that come in later are released at once
            for use in self._uses:
                use.over = True
                use.place[0].release(use.place[1])
            self._changed.notify_all()

    def _add(self, positions: Positions, before: int) -> None:
        """Plan the uses of shards by samples that are read after `before` others."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        first = np.cumsum([0, *(len(s.manifest.shards) for s in self._sets)])
        ids = np.empty(len(positions), np.int64)  # numbers of shards, counted through all sets
        for number, shards in enumerate(self._sets):
            here = which == number
            ids[here] = first[number] + shards.index["shard"][positions[here] - self._starts[number]]
        begin = np.full(first[-1], -1)
        end = np.full(first[-1], -1)
        count = np.arange(len(ids))
        begin[ids[::-1]] = count[::-1]  # where several are assigned, the last one counts
        end[ids] = count
        uses = []
        for number in np.flatnonzero(end >= 0)[np.argsort(begin[end >= 0])].tolist():
            which_set = int(np.searchsorted(first, number, side="right")) - 1
            shards = self._sets[which_set]
            if isinstance(shards, RemoteShardSet):
                uses.append(_Use((shards, number - int(first[which_set])), before + int(end[number])))
        with self._changed:
            self._uses += uses
            self._ends.extend(sorted(uses, key=lambda use: use.end))
        for _ in range(min(self._fetches, len(uses))):
            threading.Thread(target=self._work, args=(before + len(positions),), name="fetch", daemon=True).start()

    def _work(self, samples: int) -> None:
        while use := self._take():
            try:
                self._fetch(use)
            except UserError as error:
                log.warning("%s; it is tried again when it is needed", error)
            with self._changed:
                if use.over:
                    self._release(use)
        with self._changed:
            following = self._following
            self._following = None
        if following and not self._closed:
            self._add(following(), samples)

    def _take(self) -> _Use | None:
        """Return the next shard to fetch when fewer than `depth` are held; None if there is no other."""
        with self._changed:
            while not self._closed and self._next < len(self._uses):
                use = self._uses[self._next]
                if not use.over and self._next - self._over >= self._depth:
                    self._changed.wait()
                    continue
                self._next += 1
                if not use.over:
                    use.begun = True
                    self._current[use.place] += 1
                    return use
            return None

    def _fetch(self, use: _Use) -> None:
        shards, shard = use.place
        while not use.over:
            try:
                shards.fetch(shard, ahead=True)
                return
            except NoRoom:
                with self._changed:
                    self._changed.wait(_PAUSE)  # other processes may make room, too

    def _release(self, use: _Use) -> None:
        if self._current[use.place] <= 0:
            use.place[0].release(use.place[1])


@dataclass
class _Use:
    """The time from a shard's first sample to its last one. Each copy of a repeated set has its own uses."""

    place: tuple[RemoteShardSet, int]
    """The set and the number of the shard."""
    end: int
    """Number of the last sample that is read from the shard, in the order of reading."""
    begun: bool = False
    """Whether the fetch has begun."""
    over: bool = False
    """Whether the last sample has been read."""
