import numpy as np
import pytest

from shards import twins
from shards.twins import near_pairs

RANDOM = np.random.default_rng(3)


def planted(count, random=RANDOM):
    """Random hashes, and others that differ from them in 0 to 20 bits."""
    hashes = random.integers(0, 1 << 64, count, np.uint64)
    flips = np.zeros(count, np.uint64)
    for n in range(count):
        for bit in random.choice(64, n % 21, replace=False):
            flips[n] |= np.uint64(1) << np.uint64(bit)
    return hashes, random.permutation(hashes ^ flips)


def brute_force(a, b, distance):
    """(a, b, distance) of all pairs: each pair of hashes is compared, bit by bit."""
    bits = [(side[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(bool) for side in (a, b)]
    counts = np.array([(bits[1] != row).sum(axis=1) for row in bits[0]])
    return [(int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts <= distance)]


def found(*arguments, **options):
    rows = [
        row for near in near_pairs(*arguments, **options) for row in zip(*map(np.ndarray.tolist, near), strict=True)
    ]
    assert len({*rows}) == len(rows)  # each pair once
    return sorted(rows)


@pytest.mark.parametrize(
    ("layout", "distance"),
    [(3, 0), (3, 2), (3, 6), (3, 7), (4, 0), (4, 1), (4, 3), (4, 4), (4, 6), (4, 9), (4, 11), (5, 4), (5, 16)],
)
def test_all_pairs_within_a_distance_as_brute_force_finds_them(layout, distance, monkeypatch):
    a, b = planted(500)
    monkeypatch.setattr(twins, "_LAYOUTS", (layout,))
    assert found(a, b, distance) == (expected := brute_force(a, b, distance))
    assert len(expected) >= 500 // 21 * (distance + 1)


def test_pairs_within_one_side_are_found_once(monkeypatch):
    a = np.unique(np.concatenate(planted(250)))
    expected = [row for row in brute_force(a, a, 6) if row[0] < row[1]]
    assert found(a, None, 6) == expected
    assert len(expected) >= 6 * 11
    monkeypatch.setattr(twins, "_CANDIDATES", 50)
    monkeypatch.setattr(twins, "_ROWS", 8)
    ticks = []
    assert found(a, None, 6, threads=3, tick=ticks.append) == expected
    assert sum(ticks) == pytest.approx(1)


def test_neither_the_threads_nor_the_longer_side_change_the_order():
    a, b = planted(400)
    one, many = ([near.a.tolist() for near in near_pairs(a, b, 5, threads)] for threads in (1, 4))
    assert one == many
    assert found(a[:100], b, 5) == sorted((i, j, bits) for j, i, bits in found(b, a[:100], 5))
    assert not found(a[:0], b, 5)
