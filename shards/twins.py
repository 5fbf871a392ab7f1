"""Pairs of 64-bit hashes that differ in few bits: an exact search by multi-index hashing.

M. Norouzi, A. Punjani, D. Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing" (2014): two hashes that
differ in at most N bits are nearly equal in one of their chunks. So each chunk is a key into a table, and the keys
that differ from it in few bits are looked up. What is found is compared in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.ahead import run_ahead

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

MOST_BITS = 16
"""Largest distance that can be asked for."""
_CANDIDATES = 1 << 21  # compared at a time: about 100 MB
_ROWS = 1 << 16  # looked up at a time, where few of them have many pairs
_LAYOUTS = (3, 4, 5)
"""Numbers of chunks to choose from."""
_LOOKUP, _COMPARISON, _KEY, _CALL = 20.0, 12.0, 10.0, 1e5  # ns, about, on one core
_SORTING = 1e-6  # s per picture, about
_SAMPLED = 1 << 16  # hashes of a side, for an estimate


class Near(NamedTuple):
    """Pairs of hashes, as positions in both arrays."""

    a: Int64
    b: Int64
    distance: NDArray[np.uint8]
    """Number of bits that differ."""


@dataclass(frozen=True)
class _Chunk:
    """A part of the bits of a hash."""

    shift: int
    bits: int
    radius: int
    """Most bits of it that may differ; -1: pairs are found by other chunks alone."""

    def of(self, hashes: UInt64) -> NDArray[np.int32]:
        """Return the values of the chunk."""
        mask = np.uint64((1 << self.bits) - 1)
        return (hashes >> np.uint64(self.shift) & mask).astype(np.int32)

    @property
    def lookups(self) -> int:
        """Number of keys that are looked up for one hash."""
        return sum(comb(self.bits, count) for count in range(self.radius + 1))

    def masks(self) -> Iterator[int]:
        """Yield the differences that are looked up."""
        for count in range(self.radius + 1):
            for places in combinations(range(self.bits), count):
                yield sum(1 << place for place in places)


def _chunks(distance: int, count: int) -> list[_Chunk]:
    """Cut 64 bits into `count` chunks, so that hashes within `distance` differ in at most `radius` bits of one."""
    # Proposition 2 of the paper: were every chunk beyond its radius, they would differ in distance + 1 bits or more.
    radius, more = divmod(distance, count)
    edges = [64 * n // count for n in range(count + 1)]
    return [_Chunk(edges[n], edges[n + 1] - edges[n], radius if n <= more else radius - 1) for n in range(count)]


def near_pairs(
    a: UInt64, b: UInt64 | None, distance: int, threads: int = 1, tick: Callable[[float], object] = lambda share: None
) -> Iterator[Near]:
    """Yield all pairs of a hash in `a` and one in `b` that differ in at most `distance` bits, each pair once.

    The order depends on the arguments alone, not on `threads`. Memory holds about 60 bytes per hash, a table of
    2**22 keys, and 100 MB per thread.

    Args:
        a, b: hashes. b None: pairs within `a`, the lower position first; none of a hash with itself.
        threads: pairs are compared by so many threads.
        tick: called with the share of the work that was done since the last call.
    """
    within = b is None
    other = a if b is None else b
    if not len(a) or not len(other):
        return
    if len(a) > len(other):  # fewer are looked up
        for found in near_pairs(other, a, distance, threads, tick):
            yield Near(found.b, found.a, found.distance)
        return
    chunks = _best_chunks(a, other, distance)
    total = sum(chunk.lookups for chunk in chunks)

    def calls() -> Iterator[Sequence[Callable[[], tuple[float, Near]]]]:
        for n, chunk in enumerate(chunks):
            if chunk.radius < 0:
                continue
            table = _Table(a, other, chunk, chunks[:n], distance, within)
            for mask in chunk.masks():
                parts = table.parts(mask)
                share = 1 / len(parts) / total if parts else 0.0
                yield from ([partial(_compared, table, share, mask, begin, end)] for begin, end in parts)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for [(share, found)] in run_ahead(pool, calls(), 2 * threads):
                yield found
                tick(share)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compared(table: _Table, share: float, mask: int, begin: int, end: int) -> tuple[float, Near]:
    """Return the share of the work that this part is, and its pairs."""
    return share, table.compare(mask, begin, end)


def seconds(a: UInt64, b: UInt64, distance: int) -> float:
    """Return about how long a search takes on one core, with the sorting before it, from a sample of the hashes."""
    if not len(a) or not len(b):
        return 0.0
    a, b = sorted((a, b), key=len)
    return _SORTING * (len(a) + len(b)) + 1e-9 * min(_cost(a, b, _chunks(distance, count)) for count in _LAYOUTS)


def _best_chunks(a: UInt64, b: UInt64, distance: int) -> list[_Chunk]:
    return min((_chunks(distance, count) for count in _LAYOUTS), key=lambda chunks: _cost(a, b, chunks))


def _cost(a: UInt64, b: UInt64, chunks: list[_Chunk]) -> float:
    """Return the time of a search in ns, about, from at most `_SAMPLED` hashes of each side."""
    some = a[:: -(-len(a) // _SAMPLED)], b[:: -(-len(b) // _SAMPLED)]
    scale = len(a) / len(some[0]) * len(b) / len(some[1])
    cost = 0.0
    for chunk in chunks:
        if chunk.radius < 0:
            continue
        counts = [np.unique(chunk.of(hashes), return_counts=True) for hashes in some]
        _, left, right = np.intersect1d(counts[0][0], counts[1][0], assume_unique=True, return_indices=True)
        equal = float(counts[0][1][left] @ counts[1][1][right]) * scale
        spread = len(a) * len(b) / 2**chunk.bits
        cost += chunk.lookups * (_CALL + _LOOKUP * len(a) + _COMPARISON * max(equal, spread))
        cost += _KEY * 2**chunk.bits
    return cost


class _Table:
    """The hashes of both sides in the order of one chunk.

    Args:
        earlier: the chunks that were searched before: pairs that they found are left out.
        within: a and b are the same.
    """

    def __init__(self, a: UInt64, b: UInt64, chunk: _Chunk, earlier: list[_Chunk], distance: int, within: bool) -> None:
        keys = chunk.of(a)
        self._order_a = np.argsort(keys, kind="stable")
        self._keys = keys[self._order_a]
        self._a = a[self._order_a]
        keys = chunk.of(b)
        self._order_b = np.argsort(keys, kind="stable")
        self._b = b[self._order_b]
        counts = np.bincount(keys, minlength=1 << chunk.bits)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._most = int(counts.max())  # rows of b with one key
        self._earlier = earlier
        self._distance = distance
        self._within = within

    def _ranges(self, mask: int, begin: int, end: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return (first, number) of the rows of b whose key is that of each row of a, but for the bits of `mask`."""
        keys = self._keys[begin:end] ^ mask
        first = self._starts[keys]
        return first, self._starts[keys + 1] - first

    def parts(self, mask: int) -> list[tuple[int, int]]:
        """Return ranges of the rows of a with at most about `_CANDIDATES` pairs each: one row may have more."""
        if (step := _CANDIDATES // self._most) >= _ROWS:
            return [(begin, min(begin + step, len(self._a))) for begin in range(0, len(self._a), step)]
        ends = np.cumsum(self._ranges(mask, 0, len(self._a))[1])
        cuts = np.searchsorted(ends, np.arange(_CANDIDATES, int(ends[-1]), _CANDIDATES), side="right")
        edges = np.unique(np.concatenate([[0], cuts, [len(ends)]])).tolist()
        return [*pairwise(edges)]

    def compare(self, mask: int, begin: int, end: int) -> Near:
        """Compare the rows of a from `begin` to `end` with those of b that a lookup finds."""
        first, count = self._ranges(mask, begin, end)
        hit = np.flatnonzero(count)
        first = first[hit]
        count = count[hit]
        ends = np.cumsum(count)
        total = int(ends[-1]) if len(ends) else 0
        rows = np.repeat((first - (ends - count)).astype(np.int32), count)
        rows += np.arange(total, dtype=np.int32)
        differ = np.repeat(self._a[begin:end][hit], count)
        differ ^= self._b[rows]
        distance = np.bitwise_count(differ)
        found = np.flatnonzero(distance <= self._distance)
        for chunk in self._earlier:
            if chunk.radius >= 0:
                found = found[np.bitwise_count(chunk.of(differ[found])) > chunk.radius]
        a = self._order_a[begin + hit[np.searchsorted(ends, found, side="right")]]
        b = self._order_b[rows[found]]
        distance = distance[found]
        if self._within:
            upper = a < b
            return Near(a[upper], b[upper], distance[upper])
        return Near(a, b, distance)
