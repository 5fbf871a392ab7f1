"""Which samples of shard sets a part has, and the order in which an epoch visits them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet
from trainer.data.choice import hash64
from trainer.data.decoding import Need

Part = Literal["train", "holdout"]
"""Samples that are trained on, or those that are held out."""
SHUFFLE_WINDOW = 64
"""Shards whose samples are mixed; it bounds how many tars are read at a time."""


@dataclass(frozen=True)
class Entry:
    """A shard set in an epoch. One that is repeated has several entries, with positions of their own."""

    shards: ShardSet
    is_held_out: NDArray[np.bool_]
    """(N,)."""
    copy: int = 0
    """Number of this entry among those of its set."""
    copies: int = 1
    """Entries of its set."""


class SampleOrder:
    """The samples of a part by their position, which counts through all entries.

    The order of an epoch is a pure function of seed, epoch and manifests.

    Args:
        entries: the shard sets.
        part: "train" is shuffled; "holdout" keeps the order of the shards.
        need: leave out samples none of whose objects has this.
        seed: of the shuffling.
        limit: take the first so many samples alone.
    """

    def __init__(
        self, entries: Sequence[Entry], part: Part, need: Need | None, seed: int, limit: int | None = None
    ) -> None:
        self._entries = entries
        self._seed = seed
        self._shuffled = part == "train"
        sets = [entry.shards for entry in entries]
        self.starts: list[int] = np.cumsum([0, *(len(shards) for shards in sets)]).tolist()
        """The first position of each entry."""
        chosen = np.concatenate([entry.is_held_out for entry in entries]) == (part == "holdout")
        usable = np.concatenate([s.index[need] > 0 if need else np.ones(len(s), np.bool_) for s in sets])
        self.left_out = int((chosen & ~usable).sum())
        """Samples of the part without an object that has what is needed."""
        self._positions = np.flatnonzero(chosen & usable)[:limit].astype(np.uint64)
        first = np.cumsum([0, *(len(shards.manifest.shards) for shards in sets)])
        shard_of = np.concatenate([shards.index["shard"] + first[i] for i, shards in enumerate(sets)])
        self._shards = shard_of[self._positions.astype(np.int64)].astype(np.uint64)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def positions(self) -> NDArray[np.int64]:
        """The positions of the part's samples, rising."""
        return self._positions.astype(np.int64)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The positions in the order in which all processes together visit them."""
        if not self._shuffled:
            return self.positions
        salt = self._seed * 1_000_003 + epoch
        # Shards are shuffled, then the samples of each run of `SHUFFLE_WINDOW` shards among one another.
        ids = np.unique(self._shards)
        rank = np.argsort(np.argsort(hash64(ids, salt + 1), kind="stable"))
        window = rank[np.searchsorted(ids, self._shards)] // SHUFFLE_WINDOW
        return self._positions[np.lexsort((hash64(self._positions, salt), window))].astype(np.int64)

    def locate(self, position: int) -> tuple[Entry, int]:
        """The entry that a position lies in, and the number of the sample in its set."""
        which = bisect_right(self.starts, position) - 1
        return self._entries[which], position - self.starts[which]
