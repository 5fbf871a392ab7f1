from functools import lru_cache

import numpy as np
import pytest

from shards import overlap
from shards.overlap import Pictures, find_overlap
from shards.pictures_table import NO_STRUCTURE


def pictures(count, seed, blank=0.1):
    """Pictures of few different hashes and shots; equal pixels have equal hashes. Some are of one colour."""
    random = np.random.default_rng(seed)
    base = np.random.default_rng(0).integers(1, 1 << 64, 40, np.uint64)
    hashes = base[np.minimum(random.geometric(0.08, count) - 1, 39)]  # some are very frequent
    for _ in range(3):
        hashes = hashes ^ np.where(
            random.random(count) < 0.3, np.uint64(1) << random.integers(0, 4, count).astype(np.uint64), np.uint64(0)
        )
    hashes[random.random(count) < blank] = NO_STRUCTURE
    pixels = hashes * np.uint64(4) + random.integers(0, 3, count).astype(np.uint64)
    positions = np.arange(count)
    return Pictures(
        (),
        np.zeros(count, np.int32),
        positions,
        positions.astype(np.int32),
        pixels,
        hashes,
        random.integers(0, count // 8, count).astype(np.uint64),
    )


def brute_force(a, b, distance):
    """(a, b, distance, or -1 for equal pixels) of all pairs, by two loops."""
    rows = []
    other = b or a
    hashes = a.hashes.tolist(), other.hashes.tolist()
    pixels = a.pixels.tolist(), other.pixels.tolist()
    shots = a.shots.tolist(), other.shots.tolist()
    for i in range(len(a)):
        for j in range(0 if b else i + 1, len(other)):
            if not b and shots[0][i] == shots[1][j]:
                continue
            bits = (hashes[0][i] ^ hashes[1][j]).bit_count()
            if pixels[0][i] == pixels[1][j]:
                rows.append((i, j, -1))
            elif bits <= distance and hashes[0][i] != NO_STRUCTURE != hashes[1][j]:
                rows.append((i, j, bits))
    return rows


@lru_cache
def expected(within, distance):
    """Two sides, and their pairs."""
    a = pictures(400, 1)
    b = None if within else pictures(500, 2)
    return a, b, brute_force(a, b, distance)


@pytest.fixture(params=["one by one", "counted first", "too many to list"])
def limits(request, monkeypatch):
    if request.param != "one by one":
        monkeypatch.setattr(overlap, "_MANY", 20)
        monkeypatch.setattr(overlap, "_EXPANDED", 64)
    if request.param == "too many to list":
        monkeypatch.setattr(overlap, "MOST_LISTED", 300)
    return request.param


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("distance", [0, 2])
def test_pairs_are_those_of_two_loops(limits, within, distance):
    a, b, rows = expected(within, distance)
    found = find_overlap(a, b, distance, threads=2)
    equal = sum(row[2] < 0 for row in rows)
    assert (found.equal, found.near) == (equal, len(rows) - equal)
    assert found.complete == (limits != "too many to list")
    listed = [*zip(found.a.tolist(), found.b.tolist(), found.distance.tolist(), strict=True)]
    ranks = {name: {} for name in "ab"}
    for i, j, bits in rows:
        for name, n in (("a", i), ("b", j)) if b else (("a", i), ("a", j)):
            ranks[name][n] = min(bits, ranks[name].get(n, 99))
    assert found.twins_a == len(ranks["a"])
    assert found.twins_b == len(ranks["b" if b else "a"])
    if found.complete:
        assert listed == sorted(rows, key=lambda row: (row[2], row))
        return
    assert {*listed} <= {*rows}
    assert len(listed) == len({*listed}) <= found.twins_a + found.twins_b
    nearest = {name: {} for name in "ab"}
    for i, j, bits in listed:
        for name, n in (("a", i), ("b", j)) if b else (("a", i), ("a", j)):
            nearest[name][n] = min(bits, nearest[name].get(n, 99))
    assert nearest == ranks


def test_a_hundred_thousand_equal_pictures_take_no_time():
    count = 100_000
    numbers = np.arange(count)
    ones = np.ones(count, np.uint64)
    blank = Pictures(
        (), np.zeros(count, np.int32), numbers, numbers.astype(np.int32), ones, 0 * ones, numbers.astype(np.uint64)
    )
    found = find_overlap(blank, blank)
    assert (found.equal, found.near, found.twins_a, found.complete) == (count * count, 0, count, False)
    assert len(found.a) < 2 * count
    found = find_overlap(blank, None)
    assert found.equal == count * (count - 1) // 2
    noisy = Pictures(
        blank.sets, blank.numbers, blank.positions, blank.frames, numbers.astype(np.uint64), 5 * ones, blank.shots
    )
    assert find_overlap(noisy, None).near == count * (count - 1) // 2
    one_video = Pictures(blank.sets, blank.numbers, blank.positions, blank.frames, noisy.pixels, noisy.hashes, ones)
    assert find_overlap(one_video, None).near == 0


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0), (0, None)])
def test_a_side_without_pictures_has_no_twins(counts):
    a, b = (None if count is None else pictures(40, 1).of_samples([np.arange(40) < count]) for count in counts)
    found = find_overlap(a, b)
    assert (found.equal, found.near, len(found.a), found.complete) == (0, 0, 0, True)
