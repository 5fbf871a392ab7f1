"""Frames of a video are drawn as in Sa2VA's training."""

import pytest

from tests.trainer.conversations.samples import make, objects, sample


@pytest.mark.parametrize(("count", "most", "twice"), [(7, 5, False), (16, 5, False), (6, 5, True), (2, 5, True)])
def test_frames_are_sorted_and_repeated_only_where_a_video_has_few(count, most, twice):
    seen = set()
    repeated = False
    for epoch in range(60):
        frames = make(sample({"objects": objects("x")}, count), epoch, frames=most)[0][0].frames
        assert len(frames) == most and [*frames] == sorted(frames)
        repeated |= len({*frames}) < most
        seen |= {*frames}
    assert seen == {*range(count)} and repeated == twice


def test_a_single_frame_shows_as_many_of_the_asked_objects_as_any():
    of = sample({"objects": objects("x", "y")}, cells=[[0, 0], [9, 0], [0, 9], [4, 4], [4, 5]])
    both = {make(of, epoch, phrases=2)[0][0].frames for epoch in range(30)}
    assert both == {(3,), (4,)}
    for epoch in range(30):
        (row,), _ = make(of, epoch)
        assert of.cells[row.frames[0], row.targets[0].objects[0]]
    nothing = {"objects": [], "expressions": [{"text": "x", "objects": []}]}
    assert {make(sample(nothing, 3), epoch)[0][0].frames for epoch in range(30)} == {(0,), (1,), (2,)}
