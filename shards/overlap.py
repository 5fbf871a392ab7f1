"""Pictures that two lots of shard sets share: equal pixels, or hashes that differ in few bits.

Both are read from the tables `pictures.parquet`; no picture is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.pictures_table import NO_STRUCTURE, PICTURES, PICTURES_TABLE
from shards.reader import ShardSet
from shards.table import open_table, read_batches
from shards.twins import Int64, Near, UInt64, near_pairs

DISTANCE = 6
"""Bits in which the hashes of nearly equal pictures differ at most, unless another number is asked for."""
MOST_LISTED = 1_000_000
"""Pairs of a list; where there are more, each picture is listed once, with its nearest twin."""
_MANY = 1 << 16  # pairs of two groups of equal hashes: more are counted before any is listed
_TOO_MANY = 1 << 28  # these are never listed one by one
_EXPANDED = 1 << 21  # pairs at a time
_EQUAL = 0  # rank of a pair with equal pixels; that of another pair is 1 + its distance
_NONE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_RANK = np.uint64(56)  # the rank stands above this bit, the twin's number below
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)


class Picture(NamedTuple):
    """One frame of a sample."""

    shards: ShardSet
    position: int
    frame: int

    @property
    def key(self) -> str:
        return self.shards.key(self.position)


@dataclass(frozen=True)
class Pictures:
    """The pictures of some sets, in the order of the sets and of their tables: P in all."""

    sets: tuple[ShardSet, ...]
    numbers: NDArray[np.int32]
    """(P,), of the picture's set."""
    positions: Int64
    """(P,), of its sample in the set."""
    frames: NDArray[np.int32]
    """(P,), of its frame in the sample."""
    pixels: UInt64
    """(P,) checksums."""
    hashes: UInt64
    """(P,) perceptual hashes."""
    shots: UInt64
    """(P,), the same for all pictures of a raw file, and for all frames of a video, in a set."""

    @classmethod
    def read(cls, shards: ShardSet) -> Pictures:
        """Read the table of a set; raises `UserError` where it has none."""
        positions, frames, pixels, hashes = _read(shards)
        numbers = np.zeros(len(positions), np.int32)
        return cls((shards,), numbers, positions, frames, pixels, hashes, _shots(shards)[positions])

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """Return the pictures of several sets, at least one, as one."""
        sets: list[ShardSet] = []
        numbers = []
        shots = []
        for part in parts:
            numbers.append(part.numbers + np.int32(len(sets)))
            shots.append(part.shots + (numbers[-1].astype(np.uint64) * _MIX))  # files of two sets are two shots
            sets += part.sets
        return cls(
            tuple(sets),
            np.concatenate(numbers),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.frames for part in parts]),
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.hashes for part in parts]),
            np.concatenate(shots),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Picture:
        return Picture(self.sets[self.numbers[index]], int(self.positions[index]), int(self.frames[index]))

    def of_samples(self, chosen: Sequence[NDArray[np.bool_]]) -> Pictures:
        """Return the pictures of the chosen samples; `chosen` is (N,) for each set."""
        starts = np.cumsum([0, *map(len, chosen)])
        kept = np.concatenate(chosen)[starts[self.numbers] + self.positions]
        return Pictures(
            self.sets,
            self.numbers[kept],
            self.positions[kept],
            self.frames[kept],
            self.pixels[kept],
            self.hashes[kept],
            self.shots[kept],
        )


def _read(shards: ShardSet) -> tuple[Int64, NDArray[np.int32], UInt64, UInt64]:
    """Return positions, frames, checksums and hashes of a set's table."""
    file = open_table(shards, PICTURES_TABLE)
    path = shards.table_file(PICTURES)
    names = ("position", "frame", "pixels", "hash")
    kinds = (np.int64, np.int32, np.uint64, np.uint64)
    parts = [[batch.column(name).to_numpy() for name in names] for batch in read_batches(file, path, names)]
    columns = zip(*parts, strict=True) if parts else ([] for _ in names)
    joined = [np.concatenate([np.empty(0, kind), *column]) for column, kind in zip(columns, kinds, strict=True)]
    return joined[0], joined[1], joined[2], joined[3]


def _shots(shards: ShardSet) -> UInt64:
    """Return the hash of each sample's video where its frames are files of a folder, else of its raw file: (N,)."""
    index = shards.index
    if "picture" not in (index.dtype.names or ()):  # of an older release
        return np.arange(len(index), dtype=np.uint64)
    is_folder = index["picture"] == index["folder"]
    return np.where(is_folder, index["folder"], index["file"]).astype(np.uint64)


@dataclass(frozen=True)
class Overlap:
    """The pairs of pictures of a and b that are equal or nearly equal."""

    equal: int
    """Number of pairs with equal pixels."""
    near: int
    """Number of other pairs whose hashes differ in few bits."""
    twins_a: int
    """Number of pictures of a with at least one twin."""
    twins_b: int
    a: Int64
    """Positions of the listed pairs in a, the nearest pairs first."""
    b: Int64
    distance: NDArray[np.int32]
    """Number of bits that differ for each listed pair; -1: equal pixels."""
    complete: bool
    """Whether all pairs are listed. Otherwise each picture that has twins is, with one of its nearest."""


def comparable(sets: Sequence[ShardSet]) -> bool:
    """Whether equal originals have equal pixels in all of these sets."""
    return len({shards.recipe.image_filter for shards in sets}) <= 1


def find_overlap(
    a: Pictures,
    b: Pictures | None,
    distance: int = DISTANCE,
    threads: int = 1,
    tick: Callable[[float], object] = lambda share: None,
) -> Overlap:
    """Find the pictures of `a` that have a twin in `b`.

    Pictures without structure, such as those of one colour, are twins only where their pixels are equal.

    Args:
        b: None: pairs within `a`, each once, without those of two frames of one raw file or one video.
        distance: largest number of bits that may differ, up to `twins.MOST_BITS`.
        threads: of the search.
        tick: called with the share of the search that was done since the last call.
    """
    other = a if b is None else b
    found = _Collector(a, b, comparable([*a.sets, *other.sets]))
    if found.exact:
        found.add_equal()
    groups_a = _Groups(a.hashes, a.hashes != NO_STRUCTURE)
    groups_b = groups_a if b is None else _Groups(b.hashes, b.hashes != NO_STRUCTURE)
    for near in near_pairs(groups_a.values, None if b is None else groups_b.values, distance, threads, tick):
        found.add(groups_a, groups_b, near)
    if b is None:
        several = np.flatnonzero(groups_a.counts > 1)
        found.add(groups_a, groups_a, Near(several, several, np.zeros(len(several), np.uint8)))
    return found.result()


class _Groups:
    """Pictures by the value of a column: those that have `values[n]` are `order[starts[n] : starts[n] + counts[n]]`."""

    def __init__(self, column: UInt64, kept: NDArray[np.bool_] | None = None) -> None:
        order = np.arange(len(column)) if kept is None else np.flatnonzero(kept)
        self.order = order[np.argsort(column[order], kind="stable")]
        ordered = column[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
        self.counts = np.diff(np.concatenate([self.starts, [len(ordered)]]))
        self.values = ordered[self.starts]

    def members(self, number: int) -> Int64:
        """Return the pictures of one group, ascending."""
        return self.order[self.starts[number] : self.starts[number] + self.counts[number]]


class _Collector:
    """Pairs of groups of pictures, added as they are found, counted and listed as pairs of pictures.

    Memory holds some bytes per picture, `MOST_LISTED` pairs and `_EXPANDED` pairs.
    """

    def __init__(self, a: Pictures, b: Pictures | None, exact: bool) -> None:
        self._a = a
        self._b = a if b is None else b
        self._within = b is None
        self.exact = exact
        self._counts = [0, 0]  # pairs with equal pixels, others
        self._listed: list[tuple[Int64, Int64, Int64]] = []
        self._complete = True
        self._nearest_a = np.full(len(a), _NONE)  # rank and twin of each picture
        self._nearest_b = self._nearest_a if self._within else np.full(len(self._b), _NONE)

    def add_equal(self) -> None:
        """Add all pairs with equal pixels."""
        a = _Groups(self._a.pixels)
        b = a if self._within else _Groups(self._b.pixels)
        if self._within:
            left = right = np.flatnonzero(a.counts > 1)
        else:
            _, left, right = np.intersect1d(a.values, b.values, assume_unique=True, return_indices=True)
        self._add(a, b, left, right, np.full(len(left), _EQUAL))

    def add(self, a: _Groups, b: _Groups, near: Near) -> None:
        """Add pairs of groups of equal hashes, without the pairs of pictures with equal pixels."""
        self._add(a, b, near.a, near.b, near.distance.astype(np.int64) + 1)

    def _add(self, a: _Groups, b: _Groups, left: Int64, right: Int64, ranks: Int64) -> None:
        pairs = a.counts[left] * b.counts[right]
        for n in np.flatnonzero(pairs > _MANY).tolist():
            same = self._within and bool(left[n] == right[n])
            self._add_many(a.members(left[n]), b.members(right[n]), same, int(ranks[n]))
        few = np.flatnonzero(pairs <= _MANY)
        edges = np.cumsum(pairs[few])
        last = int(edges[-1]) if len(edges) else 0
        cuts = np.searchsorted(edges, np.arange(_EXPANDED, last, _EXPANDED), side="right")
        for some in np.split(few, cuts):
            self._expand(a, b, left[some], right[some], ranks[some])

    def _expand(self, a: _Groups, b: _Groups, left: Int64, right: Int64, ranks: Int64) -> None:
        """List the pairs of pictures of these pairs of groups."""
        columns = b.counts[right]
        pairs = a.counts[left] * columns
        ends = np.cumsum(pairs)
        number = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - pairs, pairs)
        columns = np.repeat(columns, pairs)
        first = a.order[np.repeat(a.starts[left], pairs) + number // columns]
        second = b.order[np.repeat(b.starts[right], pairs) + number % columns]
        kept = np.repeat(left != right, pairs) | (first < second) if self._within else None
        self._record(first, second, np.repeat(ranks, pairs), kept)

    def _record(self, a: Int64, b: Int64, ranks: Int64, kept: NDArray[np.bool_] | None = None) -> None:
        """Count and list pairs of pictures, those that `kept` says, that are of two shots and not listed as equal."""
        kept = np.ones(len(a), np.bool_) if kept is None else kept
        if self._within:
            kept &= self._a.shots[a] != self._a.shots[b]
        if self.exact:
            kept &= (ranks == _EQUAL) | (self._a.pixels[a] != self._b.pixels[b])
        a, b, ranks = a[kept], b[kept], ranks[kept]
        if self._within:
            a, b = np.minimum(a, b), np.maximum(a, b)
        equal = int((ranks == _EQUAL).sum())
        self._counts[0] += equal
        self._counts[1] += len(a) - equal
        self._note_nearest(a, b, ranks)
        self._list(a, b, ranks)

    def _note_nearest(self, a: Int64, b: Int64, ranks: Int64 | int) -> None:
        above = np.asarray(ranks).astype(np.uint64) << _RANK
        np.minimum.at(self._nearest_a, a, above | b.astype(np.uint64))
        np.minimum.at(self._nearest_b, b, above | a.astype(np.uint64))

    def _list(self, a: Int64, b: Int64, ranks: Int64) -> None:
        if self._complete and len(a):
            self._listed.append((a, b, ranks))
        if sum(self._counts) > MOST_LISTED:
            self._complete = False
            self._listed.clear()

    def _add_many(self, a: Int64, b: Int64, same: bool, rank: int) -> None:
        """Add the pairs of two large groups: counted first, and listed one by one only where that is of use.

        Args:
            a, b: the pictures of both groups.
            same: they are one group.
        """
        count = self._count(a, b, rank)
        count = count // 2 if same else count
        if not count:
            return
        if self._complete and sum(self._counts) + count <= MOST_LISTED and len(a) * len(b) <= _TOO_MANY:
            step = max(1, _EXPANDED // len(b))
            for begin in range(0, len(a), step):
                first = np.repeat(a[begin : begin + step], len(b))
                second = np.tile(b, len(first) // len(b))
                self._record(first, second, np.full(len(first), rank), first < second if same else None)
            return
        self._counts[rank != _EQUAL] += count
        self._complete = False
        self._listed.clear()
        self._pair_with_first(a, b, rank)
        self._pair_with_first(b, a, rank, turned=True)

    def _count(self, a: Int64, b: Int64, rank: int) -> int:
        """Return the number of ordered pairs of two groups that are to be counted."""
        shots = (self._a.shots[a], self._b.shots[b])
        pixels = (self._a.pixels[a], self._b.pixels[b])
        count = len(a) * len(b)
        leaves_out_equal = self.exact and rank != _EQUAL
        if self._within:
            count -= _equal_pairs(*shots)
        if leaves_out_equal:
            count -= _equal_pairs(*pixels)
        if self._within and leaves_out_equal:  # subtracted twice
            count += _equal_pairs(*(x * _MIX + y for x, y in zip(pixels, shots, strict=True)))
        return count

    def _pair_with_first(self, a: Int64, b: Int64, rank: int, turned: bool = False) -> None:
        """Note for each picture of `a` the first of `b`, of another shot than its own within one side."""
        for _ in range(2 if self._within else 1):
            first = int(b[0])
            fits = np.ones(len(a), np.bool_)
            if self._within:
                fits = self._a.shots[a] != self._a.shots[first]
            firsts = np.full(int(fits.sum()), first)
            if turned:
                self._note_nearest(firsts, a[fits], rank)
            else:
                self._note_nearest(a[fits], firsts, rank)
            if fits.all():
                return
            a = a[~fits]  # of the first one's shot: another shot for them
            b = b[self._a.shots[b] != self._a.shots[first]]
            if not len(b):
                return

    def result(self) -> Overlap:
        """Return what was found."""
        if self._complete:
            none = np.empty(0, np.int64)
            a, b, ranks = (np.concatenate(column) for column in zip((none,) * 3, *self._listed, strict=True))
        else:
            own, twins, ranks = self._nearest(self._nearest_a)
            a, b = own, twins
            if self._within:
                a, b = np.minimum(own, twins), np.maximum(own, twins)
            else:
                own, twins, more = self._nearest(self._nearest_b)
                a, b, ranks = np.concatenate([a, twins]), np.concatenate([b, own]), np.concatenate([ranks, more])
        order = np.lexsort((b, a, ranks))
        a, b, ranks = a[order], b[order], ranks[order]
        new = np.ones(len(a), np.bool_)
        new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])  # each may be the other's nearest
        twins_a, twins_b = (int((column != _NONE).sum()) for column in (self._nearest_a, self._nearest_b))
        distance = (ranks[new] - 1).astype(np.int32)
        equal, near = self._counts
        return Overlap(equal, near, twins_a, twins_b, a[new], b[new], distance, self._complete)

    def _nearest(self, column: UInt64) -> tuple[Int64, Int64, Int64]:
        """Return the pictures of a side that have a twin, their nearest twins, and the ranks of these pairs."""
        own = np.flatnonzero(column != _NONE)
        twins = column[own] & ((np.uint64(1) << _RANK) - np.uint64(1))
        return own, twins.astype(np.int64), (column[own] >> _RANK).astype(np.int64)


def _equal_pairs(a: UInt64, b: UInt64) -> int:
    """Return the number of pairs of a value of `a` and an equal one of `b`."""
    counted = [np.unique(column, return_counts=True) for column in (a, b)]
    _, left, right = np.intersect1d(counted[0][0], counted[1][0], assume_unique=True, return_indices=True)
    return int(counted[0][1][left] @ counted[1][1][right])
