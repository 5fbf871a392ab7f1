"""Agreement: no alarm on anything that Pillow made of one original, an alarm on everything else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from pipeline import resize
from shards.agree import pictures_agree, regions_agree
from shards.codec import normalise
from shards.format import Field
from shards.recipe import RECIPES, Recipe, named_recipe
from tests.pipeline.test_resize import blob

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "camera", "page", "brick")
FAULTS = {
    "BGR for RGB": lambda g: g[::-1],
    "flipped left to right": lambda g: g[:, :, ::-1],
    "flipped top to bottom": lambda g: g[:, ::-1],
    "rows and columns exchanged": lambda g: g.transpose(0, 2, 1),
}


def photograph(name: str) -> np.ndarray:
    return np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))


def both(original: np.ndarray, recipe: Recipe = RECIPES["default"]) -> tuple[np.ndarray, np.ndarray]:
    return resize.picture(original, recipe.vision_size, recipe), resize.picture(original, recipe.sam_size, recipe)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs(name, recipe):
    original = photograph(name)
    small, large = both(original, recipe)
    assert pictures_agree([(small, large)], ["g_pixel_values"]) == []
    grey = np.array_equal(original[..., 0], original[..., 2])
    for fault, change in FAULTS.items():
        found = pictures_agree([(small, change(large))], ["g_pixel_values"])
        if not (grey and fault == "BGR for RGB"):  # which changes nothing in a grey picture
            assert len(found) == 1 and fault in found[0].met
    published_bug = np.clip(normalise(large, recipe.mean, recipe.std) * 255, 0, 255).astype(np.uint8)
    assert pictures_agree([(small, published_bug)], ["g_pixel_values"])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_nearly_equal_frames_that_are_swapped(name):
    original = photograph(name)
    first, second = both(original[3:, 3:]), both(original[:-3, :-3])
    names = ["g_pixel_values1", "g_pixel_values2"]
    assert pictures_agree([first, second], names) == []
    found = pictures_agree([(first[0], second[1]), (second[0], first[1])], names)
    assert [(f.field, names[1 - i] in f.met) for i, f in enumerate(found)] == [(names[0], True), (names[1], True)]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 1500), st.integers(1, 1500)),
    st.sampled_from(["noise", "black and white noise", "checkerboard", "stripes", "flat", "grey", "one pixel"]),
    st.sampled_from(["default", "sa2va"]),
)
def test_no_alarm_on_any_picture(seed, size, kind, recipe):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    original = {
        "noise": lambda: rng.integers(0, 256, (*size, 3)),
        "black and white noise": lambda: (rng.random((*size, 1)) < 0.5).repeat(3, 2) * 255,
        "checkerboard": lambda: ((rows + columns) % 2 * 255)[..., None].repeat(3, 2),
        "stripes": lambda: (columns // int(rng.integers(1, 9)) % 2 * 255)[..., None].repeat(3, 2),
        "flat": lambda: np.full((*size, 3), rng.integers(0, 256, 3)),
        "grey": lambda: rng.integers(100, 156, (*size, 1)).repeat(3, 2),
        "one pixel": lambda: np.where((rows == size[0] // 2) & (columns == size[1] // 3), 255, 0)[..., None].repeat(
            3, 2
        ),
    }[kind]()
    frame = both(original.astype(np.uint8), RECIPES[recipe])
    assert pictures_agree([frame, frame], ["g_pixel_values1", "g_pixel_values2"]) == []


def stored(mask: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    cells = resize.prompt_cells(mask, recipe.prompt_pooling, recipe)
    if cells.sum() < recipe.min_prompt_cells and recipe.small_regions == "fill":
        cells = resize.fill_small(cells, mask, recipe)
    return cells, resize.mask(mask, recipe.sam_size)


def ellipse(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    (y, x), (a, b) = rng.uniform(0, (height, width)), np.exp(rng.uniform(0.5, 5, 2))
    rows, columns = np.mgrid[:height, :width]
    return ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1


RECIPES_OF_REGIONS = [named_recipe(name, pooling) for name in RECIPES for pooling in ("center", "corner", "area")]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 2300), st.integers(1, 2300)),
    st.booleans(),
    st.sampled_from(RECIPES_OF_REGIONS),
)
def test_no_alarm_on_any_region(seed, size, ragged, recipe):
    mask = blob(seed, *size) if ragged else ellipse(seed, *size)
    cells, large = stored(mask, recipe)
    if cells.sum() >= recipe.min_prompt_cells or recipe.small_regions == "fill":
        assert regions_agree(cells[None], large[None], *size, recipe, Field("prompt_masks", None)) == []


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.tuples(st.integers(64, 1024), st.integers(64, 1024)), st.sampled_from(RECIPES_OF_REGIONS)
)
def test_the_mask_of_another_object(seed, size, recipe):
    mask, other = ellipse(seed, *size), ellipse(seed + 1, *size)
    cells, _ = stored(mask, recipe)
    other_cells, other_large = stored(other, recipe)
    if mask.any() and other.any() and not np.array_equal(cells, other_cells):
        found = regions_agree(cells[None], other_large[None], *size, recipe, Field("prompt_masks", 1))
        small = cells.sum() <= recipe.min_prompt_cells and not np.any(mask & ~other)
        assert found or small  # a small region inside of another object: both touch its cells
