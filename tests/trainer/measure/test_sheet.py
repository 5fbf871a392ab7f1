"""The contact sheet of held-out samples."""

import dataclasses

import numpy as np
import pytest

from tests.trainer.measure.panels import conversation_panel, panel
from trainer.measure.drawing import colour, marked
from trainer.measure.sheet import contact_sheet


def test_a_contact_sheet_shows_the_pictures_of_the_panel():
    """Four pictures in a row, the last one missing where nothing was predicted; any caption can be drawn."""
    shown = panel("\u4e00 \U0001f600 caption", prompt=True)
    without = dataclasses.replace(shown, prediction=None)
    sheet = contact_sheet([shown, without])
    row = len(sheet) // 2
    masks = [marked(shown.image, [mask]) for mask in (shown.truth, shown.prediction)]
    expected = [shown.prompt, shown.image, *masks]
    for top, pictures in ((0, expected), (row, [*expected[:3], np.full_like(shown.image, 255)])):
        for column, want in enumerate(pictures):
            left = 6 + column * 38
            assert np.array_equal(sheet[top + 6 : top + 38, left : left + 32], want), column
    assert (sheet[38:row] < 128).any()  # letters


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_a_conversation_shows_its_frames_in_strips_and_phrases_in_the_colours_of_their_masks(frames: int):
    shown = conversation_panel(frames)
    sheet = contact_sheet([panel("x"), shown])
    above = len(contact_sheet([panel("x")]))
    assert (sheet[above:] != 255).any(2).any(1).sum() > 30  # letters
    for column in range(frames):
        for row, masks in enumerate((None, shown.truth, shown.prediction)):
            across, down = (column, row) if frames > 1 else (row, 0)
            picture = shown.frames[column] if masks is None else marked(shown.frames[column], masks[column], True)
            y = above + 6 + 38 * down
            x = 6 + 38 * across
            assert np.array_equal(sheet[y : y + 32, x : x + 32], picture)
    letters = sheet[above + 6 + 38 * (min(frames, 1) if frames < 2 else 3) :].reshape(-1, 3)
    for number in (0, 1):
        assert (letters == colour(number)).all(1).sum() > 300


def test_long_texts_are_wrapped_inside_the_sheet():
    shown = dataclasses.replace(conversation_panel(1), generated="word " * 400 + "W" * 300)
    sheet = contact_sheet([shown])
    assert sheet.shape[1] == 800 and (sheet[:, 794:] == 255).all()
    assert contact_sheet([dataclasses.replace(shown, generated="word")]).shape[0] < len(sheet) < 500
