"""What the page shows: sizes, colours, and text that stays text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from inference.chat import Phrase, Reply
from serving import drawing


def test_a_small_picture_is_shown_as_it_is_and_a_large_one_by_means(photos):
    assert drawing.step_of(300, 451) == 1 and drawing.step_of(1024, 3) == 1 and drawing.step_of(2049, 3) == 3
    assert np.array_equal(drawing.shrunk(photos[0], 1), photos[0])
    large = photos[0].repeat(3, 0).repeat(3, 1)
    assert np.array_equal(drawing.shrunk(np.pad(large, ((0, 2), (0, 1), (0, 0))), 3), photos[0])
    assert drawing.shrunk(np.full((1, 4000, 3), 7, np.uint8), 4).shape == (1, 1000, 3)


@pytest.mark.parametrize("height, width", [(300, 451), (1500, 2051), (1, 3000), (2, 1)])
def test_a_mask_goes_to_the_page_and_back(height, width):
    step = drawing.step_of(height, width)
    shown = drawing.shrunk(np.zeros((height, width, 3), np.uint8), step).shape[:2]
    mask = np.zeros((height, width), bool)
    mask[: height // 2 + 1, : width // 3 + 1] = True
    small = drawing.shrunk_mask(mask, step)
    back = drawing.grown_mask(small, step, height, width)
    assert small.shape == shown and back.shape == mask.shape
    assert not (mask & ~back).any()  # all that was marked, and less than one square around it
    rows, columns = back.nonzero()
    assert rows.max() < height // 2 + 1 + step and columns.max() < width // 3 + 1 + step


def test_strokes_are_where_a_layer_is_painted():
    layer = np.zeros((40, 60, 4), np.uint8)
    assert drawing.strokes(layer, 20, 30) is None
    layer[..., :3] = 200  # a colour without paint
    layer[10:20, 30:50, 3] = 9
    expected = np.zeros((20, 30), bool)
    expected[5:10, 15:25] = True
    assert np.array_equal(drawing.strokes(layer, 20, 30), expected)
    assert drawing.strokes(layer[..., :3], 20, 30) is None


def test_phrases_have_the_colours_of_their_masks(photos):
    masks = np.zeros((3, *photos[0].shape[:2]), bool)
    masks[0, 100:150, 50:150] = masks[1, 200:250, 200:300] = masks[2, 10:60, 300:400] = True
    plain = "<i>A cat</i> & a mat\nhere"
    phrases = (
        Phrase("<i>A cat</i>", masks[:2], 0, 12, range(2)),
        Phrase("a mat", masks[2:2], 15, 20, range(2, 2)),
        Phrase("", masks[2:], 20, 20, range(2, 3)),
    )
    page = drawing.answer_html(Reply("", plain, masks, phrases, None, 0, 0), Path("/x/<y>.jpg"))
    assert "<i>" not in page and "<y>" not in page
    assert "&lt;i&gt;A cat&lt;/i&gt;</mark> &amp; a mat<br>here</p>" in page
    marks = re.findall(r'<mark style="background: rgb\((\d+), (\d+), (\d+)\); color: (\w+)">(.*?)</mark>', page)
    assert [mark[4] for mark in marks] == ["&lt;i&gt;A cat&lt;/i&gt;", "mask 3"]  # the mat has no mask
    shown = drawing.overlay(photos[0], [masks[:2].any(0), masks[2:2].any(0), masks[2]])
    for mark, places in zip(marks, ([(100, 50), (249, 299)], [(10, 300)]), strict=True):
        for place in places:  # outlines have the whole colour
            assert tuple(shown[place]) == tuple(map(int, mark[:3]))
    assert np.array_equal(drawing.overlay(photos[0], []), photos[0])
