"""The contact sheet of held-out samples."""

import dataclasses

import numpy as np

from tests.trainer.measure.panels import panel
from trainer.measure.report import tinted
from trainer.measure.sheet import contact_sheet


def test_a_contact_sheet_shows_the_pictures_of_the_panel():
    """Four pictures in a row, the last one missing where nothing was predicted; any caption can be drawn."""
    shown = panel("\u4e00 \U0001f600 caption", prompt=True)
    without = dataclasses.replace(shown, prediction=None)
    sheet = contact_sheet([shown, without])
    row = len(sheet) // 2
    expected = [shown.prompt, shown.image, tinted(shown.image, shown.truth), tinted(shown.image, shown.prediction)]
    for top, pictures in ((0, expected), (row, [*expected[:3], np.full_like(shown.image, 255)])):
        for column, want in enumerate(pictures):
            left = 6 + column * 38
            assert np.array_equal(sheet[top + 6 : top + 38, left : left + 32], want), column
    assert (sheet[38:row] < 128).any()  # letters
