"""Masks on pictures: in colours, on grey."""

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

from trainer.measure.drawing import COLOURS, marked

MACHADO = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""What people without red, or without green cones see of linear RGB (Machado et al. 2009, severity 1)."""


def test_masks_alone_are_coloured_and_a_small_one_is_seen_on_a_large_one():
    """On a red picture too, and whatever the order."""
    image = np.full((64, 64, 3), (210, 20, 25), np.uint8)
    large = np.zeros((64, 64), bool)
    large[10:60, 10:60] = True
    small = np.zeros((64, 64), bool)
    small[20:40, 20:40] = True
    for masks in ([large, small], [small, large]):
        out = marked(image, masks).astype(int)
        assert (np.ptp(out[~large], axis=1) == 0).all() and (np.ptp(out[large], axis=1) > 40).all()
        colours = [tuple(out[y, x]) for y, x in ((30, 30), (50, 50))]
        assert len({*colours}) == 2
        outline = out[20, 20:40]  # of the small one
        assert (outline == COLOURS[masks[0] is large]).all()


def test_numbers_are_written_into_masks():
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[10:60, 10:60] = True
    empty = np.zeros_like(mask)
    plain = marked(image, [mask, empty])
    numbered = marked(image, [mask, empty], numbered=True)
    changed = (plain != numbered).any(2)
    assert changed.sum() > 60 and not changed[~mask].any() and not changed[:25].any() and not changed[45:].any()


def test_colours_differ_for_colour_blind_people_too():
    """A difference of 1 in CIEDE2000 can just be seen."""
    linear = (np.array(COLOURS) / 255) ** 2.2
    for matrix in ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], *MACHADO.values()):
        seen = rgb2lab((linear @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2))
        distances = deltaE_ciede2000(seen[:, None], seen[None])
        assert distances[~np.eye(len(COLOURS), dtype=bool)].min() > 8
