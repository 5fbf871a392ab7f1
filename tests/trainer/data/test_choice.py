"""Objects, texts and frames chosen per visit to a sample."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import compiled
from trainer.data.choice import Choice, choose, salt_of, salts_after, shuffled, take_in_turn


@settings(max_examples=200)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_every_object_comes_before_one_comes_twice(frames: int, objects: int, most: int, salt: int, seed: int):
    """For any visibility: each object is taken, none again before all were, its turns count up, both frames show it."""
    rng = np.random.default_rng(seed)
    visible = rng.random((frames, objects)) < rng.choice([0.4, 0.8, 1.0])
    able = [n for n in range(objects) if visible[:, n].any() and rng.random() < 0.8]
    if not able:
        return
    times = dict.fromkeys(able, 0)
    for visit in range(3 * len(able)):
        choice = choose(visible, able, most, salt, visit)
        assert choice == choose(visible, able, most, salt, visit)
        assert choice.objects == sorted(set(choice.objects)) and 1 <= len(choice.objects) <= most
        assert choice.turns == [times[n] for n in choice.objects]
        before = min(times.values())
        times.update({n: times[n] + 1 for n in choice.objects})
        # None runs ahead of the others, unless all of them have come with this visit.
        assert max(times.values()) <= before + 1 or min(times.values()) == before + 1
        first, second = choice.frames
        assert visible[first, choice.objects].all() and visible[second, choice.objects].all()
        if first == second:  # only where one of them is in one frame alone
            assert any(visible[:, n].sum() == 1 for n in choice.objects)
    assert min(times.values()) >= 3


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("most", range(1, 10))
def test_objects_that_share_their_frames_take_the_fewest_visits(count: int, most: int):
    visible = np.ones((2, count), bool)
    visits = -(-count // most)
    for start in range(0, 5 * visits, visits):
        taken = Counter()
        for visit in range(start, start + visits):
            choice = choose(visible, range(count), most, 99, visit).objects
            assert len(choice) == min(most, count)
            if visit < start + visits - 1:
                assert start or not taken & Counter(choice)  # none twice before the last visit
            taken.update(choice)
        assert taken.keys() == {*range(count)}
    long = Counter(n for visit in range(count) for n in choose(visible, range(count), most, 99, visit).objects)
    assert set(long.values()) == {min(most, count)}  # over count visits all of them equally often


def test_each_of_10_objects_comes_once_in_10_epochs():
    """Independent draws would leave out a third of them."""
    orders = {
        tuple(take_in_turn(shuffled(range(10), salt), 1, epoch)[0][0] for epoch in range(10)) for salt in range(50)
    }
    assert all(sorted(order) == [*range(10)] for order in orders) and len(orders) == 50


def test_objects_that_no_frames_show_together_come_in_separate_visits():
    visible = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], bool)
    choices = [choose(visible, range(4), 4, 5, visit) for visit in range(6)]
    assert sorted(choices[:3], key=lambda c: c.objects) == [
        Choice([0, 1], [0, 0], (0, 1)),
        Choice([2], [0], (0, 0)),
        Choice([3], [0], (1, 1)),
    ]
    assert [c.objects for c in choices[3:]] == [c.objects for c in choices[:3]]
    assert [c.turns[0] for c in choices[3:]] == [1, 1, 1]


def test_every_pair_of_frames_is_used():
    visible = np.ones((4, 5), bool)
    drawn = [choose(visible, [0, 2, 4], 1, 7, visit).frames for visit in range(200)]
    assert {*drawn} == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_the_order_is_spread_evenly_over_samples():
    first = Counter(shuffled(range(5), salt_of(0, f"sample{n}"))[0] for n in range(5000))
    assert sum((count - 1000) ** 2 / 1000 for count in first.values()) < 20  # chi-square, 4 degrees of freedom
    assert salt_of(0, "a") != salt_of(1, "a") != salt_of(1, "b")
    for seed, name in ((0, "a"), (12, "sa_1-ü/x"), (-1, "")):
        assert salts_after(seed)(name) == salt_of(seed, name) and salts_after(seed, "b")(name) == salt_of(
            seed, "b", name
        )
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).hexdigest()
        assert salt_of(seed, name).to_bytes(8, "little").hex() == digest
    assert shuffled([4, 9, 2], 1) == shuffled([4, 9, 2], 1)


def test_grouping_thousands_of_objects_in_separate_frames_is_fast():
    rng = np.random.default_rng(0)
    visible = rng.random((2, 4096)) < 0.5
    able = np.flatnonzero(visible.any(0)).tolist()
    choice = choose(visible, able, 4, 1, 0)
    assert len(choice.objects) == 4


@pytest.mark.skipif(not compiled.is_compiled(), reason="not compiled here")
@settings(max_examples=60)
@given(count=st.integers(0, 200), salt=st.integers(0, 2**64 - 1))
def test_the_compiled_order_is_that_of_python(count: int, salt: int):
    numbers = [3 * n for n in range(count)]
    ours = shuffled(numbers, salt)
    with compiled.python_alone():
        assert ours == shuffled(numbers, salt)
    assert numbers == [3 * n for n in range(count)] and sorted(ours) == numbers
