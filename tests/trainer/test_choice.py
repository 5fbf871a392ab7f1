"""Objects and frames that a step takes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.choice import choose


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**40), st.integers(0, 2**32 - 1))
def test_what_is_chosen_is_there_in_both_frames(frames: int, objects: int, most: int, salt: int, seed: int):
    rng = np.random.default_rng(seed)
    visible = rng.random((frames, objects)) < 0.5
    able = [n for n in range(objects) if visible[:, n].any() and rng.random() < 0.8]
    if not able:
        return
    chosen, (first, second) = choose(visible, able, most, salt)
    assert chosen == sorted(set(chosen)) and 1 <= len(chosen) <= most and set(chosen) <= set(able)
    assert visible[first, chosen].all() and visible[second, chosen].all()
    if first == second:  # only where no other frame shows one of them
        assert any(visible[:, n].sum() == 1 for n in chosen)
    if frames == 2 and first != second:
        assert (first, second) == (0, 1)
    assert (chosen, (first, second)) == choose(visible, able, most, salt)


def test_every_object_and_every_pair_of_frames_has_its_turn():
    visible = np.ones((4, 5), bool)
    drawn = [choose(visible, [0, 2, 4], 1, salt) for salt in range(400)]
    assert {objects[0] for objects, _ in drawn} == {0, 2, 4}
    assert {pair for _, pair in drawn} == {(a, b) for a in range(4) for b in range(4) if a != b}
    assert choose(visible, [0, 2, 4], 5, 0)[0] == [0, 2, 4]
