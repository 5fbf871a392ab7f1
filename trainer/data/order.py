"""Which samples of shard sets a part has, and the order in which an epoch visits them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet
from trainer.data.choice import UInt64, hash64
from trainer.data.decoding import Need
from trainer.data.lengths import group_by_length
from trainer.data.object_texts import ObjectTexts
from trainer.data.selection import Selection

Part = Literal["train", "holdout"]
"""Samples that are trained on, or those that are held out."""
SHUFFLE_WINDOW = 64
"""Shards whose samples are mixed; it bounds how many tars are read at a time."""
_FINEST = 10_000
"""Largest denominator of a share of a set."""


@dataclass(frozen=True)
class Entry:
    """A shard set in an epoch. One that is repeated has several entries, with positions of their own."""

    shards: ShardSet
    is_held_out: NDArray[np.bool_]
    """(N,)."""
    copy: int = 0
    """Number of this entry among those of its set."""
    whole: int = 1
    """Entries of its set that hold all samples in each epoch."""
    share: Fraction = Fraction(0)
    """Share of the set's samples that an epoch takes once more, in the last entry of the set; below 1."""
    selection: Selection | None = None
    """The objects that count, and their texts; None: all, with those in the samples' JSON."""

    @property
    def is_whole(self) -> bool:
        """Whether the entry holds all samples in each epoch."""
        return self.copy < self.whole

    def chosen(self, number: int) -> list[int] | None:
        """Return the numbers of the objects of a sample that count; None: all."""
        return None if self.selection is None else self.selection.of(number)

    def texts(self, number: int) -> ObjectTexts | None:
        """Return the texts of the objects of a sample that count; None: those in its JSON."""
        return None if self.selection is None else self.selection.texts_of(number)


def entries_of(
    shards: ShardSet, is_held_out: NDArray[np.bool_], repeats: float, selection: Selection | None = None
) -> list[Entry]:
    """Return the entries of a set whose samples come `repeats` times in an epoch, a fraction included."""
    exact = Fraction(repeats).limit_denominator(_FINEST)
    whole = int(exact)
    share = exact - whole
    return [Entry(shards, is_held_out, copy, whole, share, selection) for copy in range(whole + bool(share))]


class SampleOrder:
    """The samples of a part by their position, which counts through all entries.

    The order of an epoch is a pure function of seed, epoch and manifests. An entry that holds a share p / q of its set
    takes other samples in each epoch: each sample comes p times in q epochs.

    Args:
        entries: the shard sets.
        part: "train" is shuffled; "holdout" keeps the order of the shards.
        need: leave out samples none of whose objects has this.
        seed: of the shuffling.
        limit: take so many samples alone: the first of each entry, then the second of each, and so on.
        lengths: expected length of each sample by entry, in tokens; samples of a step are then alike in length.
        per_step: samples of an optimiser step on all processes; where `lengths` are given.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        part: Part,
        need: Need | None,
        seed: int,
        limit: int | None = None,
        lengths: Sequence[NDArray[np.int64]] | None = None,
        per_step: int = 1,
    ) -> None:
        self._entries = entries
        self._seed = seed
        self._shuffled = part == "train"
        self._per_step = per_step
        sets = [entry.shards for entry in entries]
        self.starts: list[int] = np.cumsum([0, *(len(shards) for shards in sets)]).tolist()
        """The first position of each entry."""
        of_part = np.concatenate([entry.is_held_out for entry in entries]) == (part == "holdout")
        chosen = of_part & np.concatenate([usable_samples(e.shards.index, None, e.selection) for e in entries])
        usable = np.concatenate([usable_samples(e.shards.index, need, e.selection) for e in entries])
        self.not_chosen = int((of_part & ~chosen).sum())
        """Samples of the part of which no object is chosen."""
        self.left_out = int((chosen & ~usable).sum())
        """Other samples of the part without what is needed."""
        self._positions = self._limited(np.flatnonzero(chosen & usable), limit).astype(np.uint64)
        first = np.cumsum([0, *(len(shards.manifest.shards) for shards in sets)])
        shard_of = np.concatenate([shards.index["shard"] + first[i] for i, shards in enumerate(sets)])
        self._shards = shard_of[self._positions.astype(np.int64)].astype(np.uint64)
        self._lengths = np.concatenate(lengths)[self._positions.astype(np.int64)] if lengths else None
        self._slots = {number: self._slots_of(number) for number, entry in enumerate(entries) if not entry.is_whole}
        """By the number of an entry that holds a share p / q: a number in 0..q - 1 for each of its samples."""

    def _limited(self, positions: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
        """Return up to `limit` of these positions, which rise, taken from the entries in turn."""
        if limit is None:
            return positions
        entry = np.searchsorted(self.starts, positions, side="right") - 1
        turn = np.arange(len(positions)) - np.searchsorted(positions, np.array(self.starts)[entry])
        return np.sort(positions[np.lexsort((entry, turn))[:limit]])

    def __len__(self) -> int:
        """Samples of the shortest epoch."""
        left = [len(slots) - int(len(slots) * self._entries[number].share) for number, slots in self._slots.items()]
        return len(self._positions) - sum(left)

    @property
    def positions(self) -> NDArray[np.int64]:
        """The positions of the part's samples in any epoch, rising."""
        return self._positions.astype(np.int64)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The positions in the order in which all processes together visit them."""
        if not self._shuffled:
            return self.positions
        salt = self._seed * 1_000_003 + epoch
        window = _windows(self._shards, salt)
        order = np.lexsort((hash64(self._positions, salt), window))
        if self._slots:
            order = order[self._is_taken(epoch)[order]]
        if self._lengths is not None:
            order = group_by_length(order, window[order], self._lengths[order], self._per_step, salt)
        return self._positions[order].astype(np.int64)

    def locate(self, position: int) -> tuple[Entry, int]:
        """The entry that a position lies in, and the number of the sample in its set."""
        which = bisect_right(self.starts, position) - 1
        return self._entries[which], position - self.starts[which]

    def visits(self, position: int, epoch: int) -> int:
        """How often the sample at a position of an epoch was visited before, in this epoch and those before it.

        The copies of a sample visit it one after another, so that they share out its objects.
        """
        which = bisect_right(self.starts, position) - 1
        entry = self._entries[which]
        before = epoch * entry.whole + entry.copy
        if not entry.share:
            return before
        of_share = which - entry.copy + entry.whole  # the number of the entry that holds the share
        place = np.searchsorted(self._own(of_share), self.starts[of_share] + position - self.starts[which])
        return before + self._taken_before(self._slots[of_share][place], entry.share, epoch)

    def _own(self, number: int) -> UInt64:
        """Positions of the part's samples in an entry, rising."""
        begin, end = np.searchsorted(self._positions, np.array(self.starts[number : number + 2], np.uint64))
        return self._positions[begin:end]

    def _slots_of(self, number: int) -> NDArray[np.int64]:
        """Divide the samples of an entry into as many parts as its share's denominator: (S,), by sample.

        The parts differ by at most one sample, and take whole tars where there are many, so that an epoch opens, or
        fetches, few tars beside those that it takes.
        """
        entry = self._entries[number]
        begin, end = np.searchsorted(self._positions, np.array(self.starts[number : number + 2], np.uint64))
        within = self._positions[begin:end] - np.uint64(self.starts[number])
        salt = self._seed * 1_000_003 - 1
        order = np.lexsort((hash64(within, salt), _windows(self._shards[begin:end], salt)))
        slots = np.empty(len(order), np.int64)
        slots[order] = np.arange(len(order)) * entry.share.denominator // max(1, len(order))
        return slots

    def _is_taken(self, epoch: int) -> NDArray[np.bool_]:
        """Which of the part's samples an epoch takes: (S,)."""
        taken = np.ones(len(self._positions), np.bool_)
        for number, slots in self._slots.items():
            begin = int(np.searchsorted(self._positions, np.uint64(self.starts[number])))
            share = self._entries[number].share
            now = self._taken_before(slots, share, epoch + 1) > self._taken_before(slots, share, epoch)
            taken[begin : begin + len(slots)] = now
        return taken

    @staticmethod
    def _taken_before(slots: Any, share: Fraction, epoch: int) -> Any:
        """How often an entry with a share took the samples in these slots in the epochs before `epoch`."""
        return (epoch * share.numerator + slots) // share.denominator


def usable_samples(index: NDArray[Any], need: Need | None, selection: Selection | None = None) -> NDArray[np.bool_]:
    """Whether each sample has what is needed: (N,). A set of an older release may not know."""
    if selection is not None:
        return selection.usable(need)
    known = need in (index.dtype.names or ())
    return index[need] > 0 if need and known else np.ones(len(index), np.bool_)


def _windows(shards: UInt64, salt: int) -> NDArray[np.int64]:
    """Shuffle the shards, and return for each sample the number of the run of `SHUFFLE_WINDOW` shards it is in: (S,).

    Args:
        shards: (S,), the shard of each sample.
    """
    ids = np.unique(shards)
    rank = np.argsort(np.argsort(hash64(ids, salt + 1), kind="stable"))
    windows: NDArray[np.int64] = rank[np.searchsorted(ids, shards)] // SHUFFLE_WINDOW
    return windows
