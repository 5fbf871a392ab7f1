"""The official tiling, against a computation that tries all grids in turn, and torchvision."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode

from inference import tiles
from shards.recipe import RECIPES

SIDES = st.one_of(st.integers(1, 6000), st.sampled_from([224, 448, 896, 1344, 500, 1000, 3000]))


def by_going_through(width: int, height: int, most: int) -> tuple[int, int]:
    """Try grids from few tiles to many: a closer one wins; an equally close one wins if the picture is large enough."""
    best = (1, 1)
    distance = float("inf")
    for count in range(1, most + 1):
        for columns in range(1, count + 1):
            if count % columns:
                continue
            rows = count // columns
            actual = abs(width / height - columns / rows)
            enough = width * height > 0.5 * 448 * 448 * columns * rows
            if actual < distance or (actual == distance and enough):
                best = (columns, rows)
                distance = actual
    return best


@settings(max_examples=400)
@given(SIDES, SIDES, st.integers(1, 12))
def test_the_grid_is_the_official_one(width, height, most):
    assert tiles.grid(width, height, most) == by_going_through(width, height, most)


@pytest.mark.parametrize(
    "size, expected",
    [((1920, 1080), (4, 2)), ((300, 300), (1, 1)), ((700, 700), (2, 2)), ((2000, 2000), (3, 3)), ((100, 900), (1, 9))],
)
def test_grids_by_hand(size, expected):
    assert tiles.grid(*size, 12) == expected
    assert tiles.grid(*size, 1) == (1, 1)


@pytest.mark.parametrize(
    "recipe, mode", [("sa2va", InterpolationMode.BICUBIC), ("default", InterpolationMode.BILINEAR)]
)
def test_tiles_are_cut_from_one_resized_picture_and_the_whole_comes_last(photos, recipe, mode):
    for photo in photos:
        height, width = photo.shape[:2]
        columns, rows = tiles.grid(width, height, 12)
        image = Image.fromarray(photo)
        large = F.resize(image, [448 * rows, 448 * columns], InterpolationMode(mode))
        expected = [
            F.crop(large, 448 * row, 448 * column, 448, 448) for row in range(rows) for column in range(columns)
        ]
        assert len(expected) > 1
        expected.append(F.resize(image, [448, 448], InterpolationMode(mode)))
        actual = torch.from_numpy(tiles.views(photo, 12, RECIPES[recipe]))
        assert torch.equal(actual, torch.stack([F.pil_to_tensor(w) for w in expected]))


def test_one_tile_is_what_shards_hold_and_has_no_thumbnail(photos):
    from pipeline import resize

    recipe = RECIPES["sa2va"]
    actual = tiles.views(photos[0], 1, recipe)
    assert np.array_equal(actual, resize.picture(photos[0], 448, recipe)[None])
    small = photos[0][:300, :300].copy()
    assert len(tiles.views(small, 12, recipe)) == 1
