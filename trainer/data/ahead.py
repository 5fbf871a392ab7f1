"""Shards of remote sets, fetched in the background in the order in which a loader comes to need them."""

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

_PAUSE = 0.2  # seconds between two looks for room in the cache


def check_room(cache: Cache | None, sets: Sequence[ShardSet], window: int) -> None:
    """Raise `UserError` unless the cache can hold any two windows of shards of the remote `sets`, and some to spare.

    Samples of a window's shards are mixed, so all of these shards are needed until the window's end, and the next
    window's should be there by then. What is to spare keeps a reader, such as of held-out samples, from having to wait
    for what another process has fetched ahead.
    """
    remote = [s for s in dict.fromkeys(sets) if isinstance(s, RemoteShardSet)]
    sizes = sorted(info.bytes for s in remote for info in s.manifest.shards)[
        -2 * window - (cache.spare if cache else 0) :
    ]
    needed = sum(sizes) + sum(s.index.nbytes for s in remote)
    if cache and cache.limit < needed:
        met, do = f"{cache.limit / 1e9:,.2f} GB", "raise it, or write smaller shards (--shard-size)"
        wanted = (
            f">= {needed / 1e9:,.2f} GB, so that {len(sizes)} shards fit: those whose samples are mixed, and the next"
        )
        raise UserError("the cache is too small", where="data.cache_limit", met=met, wanted=wanted, do=do)


class Ahead:
    """Fetches what a loader will read, and releases what it has read.

    Args:
        sets: of the loader; a set may stand there several times.
        starts: the first global position of each set.
        positions: the samples that will be read, in their order.
        depth: shards that are held at a time, at most.
        fetches: shards that are fetched at a time.
        following: what will be read after that; not asked for before all else is fetched.
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
        self._sets, self._starts, self._depth, self._fetches = sets, starts, depth, fetches
        self._following = following
        self._uses: list[_Use] = []  # in the order of their beginning
        self._ends: deque[_Use] = deque()  # in the order of their end
        self._next, self._over, self._closed = 0, 0, False
        self._current = Counter[tuple[RemoteShardSet, int]]()  # uses that have begun to be fetched and are not over
        self._changed = threading.Condition()
        self._add(positions, 0)

    def consumed(self, count: int) -> None:
        """So many samples have been read: what is not needed any more is released."""
        with self._changed:
            while self._ends and self._ends[0].end < count:
                use = self._ends.popleft()
                use.over = True
                self._over += 1
                self._current[use.place] -= use.begun
                self._release(use)
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is fetched, and all is released. What is on its way still comes into the cache."""
        with self._changed:
            self._closed = True
            self._current.clear()  # what comes in later is released at once
            for use in self._uses:
                use.over = True
                use.place[0].release(use.place[1])
            self._changed.notify_all()

    def _add(self, positions: Positions, before: int) -> None:
        """Plan for these samples, which are read after `before` others."""
        which = np.searchsorted(self._starts, positions, side="right") - 1
        first = np.cumsum([0, *(len(s.manifest.shards) for s in self._sets)])
        ids = np.empty(len(positions), np.int64)  # shards, counted through all sets
        for number, shards in enumerate(self._sets):
            own = which == number
            ids[own] = first[number] + shards.index["shard"][positions[own] - self._starts[number]]
        begin, end, count = np.full(first[-1], -1), np.full(first[-1], -1), np.arange(len(ids))
        begin[ids[::-1]], end[ids] = count[::-1], count  # where several are assigned, the last one counts
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
            following, self._following = self._following, None
        if following and not self._closed:
            self._add(following(), samples)

    def _take(self) -> _Use | None:
        """The next shard to fetch, once few enough are held; None: there is no other."""
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
                    self._changed.wait(_PAUSE)  # others may make room, too

    def _release(self, use: _Use) -> None:
        if self._current[use.place] <= 0:
            use.place[0].release(use.place[1])


@dataclass
class _Use:
    """From when a shard is needed first to when it is needed last; by each copy of its set anew."""

    place: tuple[RemoteShardSet, int]
    end: int
    """The last sample read from it, counted in the order of reading."""
    begun: bool = False
    over: bool = False
