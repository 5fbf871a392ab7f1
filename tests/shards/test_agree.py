"""The formats of a frame: those that Pillow made of one original agree, all others do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from pipeline import resize
from shards.codec import normalise
from shards.format import Field
from shards.recipe import RECIPES, Recipe, named_recipe
from shards.same_picture import picture_disagreements
from shards.same_region import centres, region_disagreements
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
def test_photographs_agree_and_changed_ones_do_not(name, recipe):
    original = photograph(name)
    small, large = both(original, recipe)
    assert picture_disagreements([(small, large)], ["g_pixel_values"]) == []
    grey = np.array_equal(original[..., 0], original[..., 2])
    for fault, change in FAULTS.items():
        found = picture_disagreements([(small, change(large))], ["g_pixel_values"])
        if not (grey and fault == "BGR for RGB"):  # which changes nothing in a grey picture
            assert len(found) == 1 and fault in found[0].met
    published_bug = np.clip(normalise(large, recipe.mean, recipe.std) * 255, 0, 255).astype(np.uint8)
    assert picture_disagreements([(small, published_bug)], ["g_pixel_values"])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_nearly_equal_frames_that_are_swapped_are_found(name):
    original = photograph(name)
    first = both(original[3:, 3:])
    second = both(original[:-3, :-3])
    names = ["g_pixel_values1", "g_pixel_values2"]
    assert picture_disagreements([first, second], names) == []
    found = picture_disagreements([(first[0], second[1]), (second[0], first[1])], names)
    assert [(f.field, names[1 - i] in f.met) for i, f in enumerate(found)] == [(names[0], True), (names[1], True)]


@settings(max_examples=25)
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
    assert picture_disagreements([frame, frame], ["g_pixel_values1", "g_pixel_values2"]) == []


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    "width, period", [(448, 2), (512, 4), (704, 2), (960, 2), (1344, 2), (2366, 2), (2688, 4), (4212, 7)]
)
def test_no_alarm_on_moire(width, period, recipe):
    """These stripes of full contrast give the worst moire: some fit better upside down, or exchanged."""
    first, second = ((np.arange(width) + shift) % period < period / 2 for shift in (0, 1))
    frames = [both(np.tile(x[None, :, None] * np.uint8(255), (32, 1, 3)), recipe) for x in (first, second)]
    assert picture_disagreements(frames, ["g_pixel_values1", "g_pixel_values2"]) == []


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "retina"])
def test_swapped_red_and_blue_in_a_nearly_grey_picture_are_found(name, recipe):
    original = photograph(name).astype(np.float64)
    grey = original.mean(axis=2, keepdims=True)
    small, large = both(np.round(grey + 0.02 * (original - grey)).astype(np.uint8), recipe)
    assert picture_disagreements([(small, large)], ["g_pixel_values"]) == []
    (found,) = picture_disagreements([(small, large[::-1])], ["g_pixel_values"])
    assert "BGR for RGB" in found.met


@pytest.mark.parametrize("name", ["astronaut", "rocket", "hubble_deep_field", "brick"])
def test_changes_of_pictures_of_little_contrast_are_found(name):
    original = photograph(name).astype(np.float64)
    small, large = both(np.round(100 + 0.05 * (original - original.mean())).astype(np.uint8))
    _, other = both(np.round(100 + 0.05 * (photograph("page") - 128.0)).astype(np.uint8))
    assert picture_disagreements([(small, large)], ["g_pixel_values"]) == []
    for wrong in (other, large[:, ::-1, ::-1], large.transpose(0, 2, 1)[:, ::-1], *(f(large) for f in FAULTS.values())):
        if not np.array_equal(wrong, large):
            assert picture_disagreements([(small, np.ascontiguousarray(wrong))], ["g_pixel_values"])


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "rocket", "camera"])
def test_one_frame_that_is_stored_twice_is_found(name):
    original = photograph(name)
    first = both(original[3:, 3:])
    second = both(original[:-3, :-3])
    names = ["g_pixel_values1", "g_pixel_values2"]
    assert picture_disagreements([first, (second[0], first[1])], names)
    assert picture_disagreements([first, (first[0], second[1])], names)


def test_swapped_frames_of_a_still_scene_are_found():
    """They differ by the camera's noise alone, and by one small thing."""
    original = photograph("astronaut").astype(np.float64)
    rng = np.random.default_rng(0)
    noisy = [np.clip(np.round(original + rng.normal(0, 5, original.shape)), 0, 255).astype(np.uint8) for _ in range(2)]
    moved = photograph("astronaut").copy()
    moved[60:76, 60:76] = moved[100:116, 100:116]
    for pair in (noisy, [photograph("astronaut"), moved]):
        first, second = map(both, pair)
        names = ["g_pixel_values1", "g_pixel_values2"]
        assert picture_disagreements([first, second], names) == []
        assert len(picture_disagreements([(first[0], second[1]), (second[0], first[1])], names)) == 2


def stored(mask: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    cells = resize.prompt_cells(mask, recipe.prompt_pooling, recipe)
    if cells.sum() < recipe.min_prompt_cells and recipe.small_regions == "fill":
        cells = resize.fill_small(cells, mask, recipe)
    return cells, resize.mask(mask, recipe.sam_size)


def ellipse(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    (y, x) = rng.uniform(0, (height, width))
    (a, b) = np.exp(rng.uniform(0.5, 5, 2))
    rows, columns = np.mgrid[:height, :width]
    return ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1


RECIPES_OF_REGIONS = [named_recipe(name, pooling) for name in RECIPES for pooling in ("center", "corner", "area")]


def packed(masks: np.ndarray) -> np.ndarray:
    """(N, 1024, 1024) bool -> (N, 1024, 128) uint8."""
    return np.packbits(masks, axis=2)


@settings(max_examples=60)
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
        assert region_disagreements(cells[None], packed(large[None]), *size, recipe, Field("prompt_masks", None)) == []


@settings(max_examples=60)
@given(
    st.integers(0, 2**31), st.tuples(st.integers(64, 1024), st.integers(64, 1024)), st.sampled_from(RECIPES_OF_REGIONS)
)
def test_the_mask_of_another_object_is_found(seed, size, recipe):
    mask = ellipse(seed, *size)
    other = ellipse(seed + 1, *size)
    cells, _ = stored(mask, recipe)
    other_cells, other_large = stored(other, recipe)
    if mask.any() and other.any() and not np.array_equal(cells, other_cells):
        found = region_disagreements(cells[None], packed(other_large[None]), *size, recipe, Field("prompt_masks", 1))
        assert found


@pytest.mark.parametrize("size", [(512, 512), (256, 480), (1024, 640), (739, 1000)])
@pytest.mark.parametrize("recipe", RECIPES_OF_REGIONS, ids=lambda r: f"{r.name} {r.prompt_pooling}")
def test_no_alarm_on_dust(size, recipe):
    """Every pixel counts: Pillow's NEAREST to 448 takes the pixel before where 128 divides a side."""
    mask = np.random.default_rng(0).random(size) < 0.5
    cells, large = stored(mask, recipe)
    assert region_disagreements(cells[None], packed(large[None]), *size, recipe, Field("prompt_masks", None)) == []


@pytest.mark.parametrize("count", [16, 448, 1024])
def test_centres_are_the_rows_that_pillow_takes(count):
    for length in (*range(1, 1200), *range(1200, 20_000, 97)):
        rows = Image.fromarray(np.arange(length, dtype=np.float32)[None])
        taken = np.asarray(rows.resize((count, 1), Image.Resampling.NEAREST))[0]
        assert np.array_equal(taken, centres(length, count)), length


def test_a_mask_of_another_original_size_is_found():
    mask = np.zeros((512, 512), bool)
    mask[100:300, 100:300] = True
    cells, large = stored(mask, RECIPES["default"])
    shifted = np.roll(large, 1, axis=0)  # half a pixel of the original: the cells stay
    (found,) = region_disagreements(
        cells[None], packed(shifted[None]), 512, 512, RECIPES["default"], Field("prompt_masks", 1)
    )
    assert "not enlarged" in found.what


@pytest.mark.parametrize("size", [(480, 640), (3000, 2000)])
def test_the_hint_names_the_object_of_the_mask(size):
    masks = [np.zeros(size, bool) for _ in range(2)]
    masks[0][size[0] // 8 : size[0] // 3, size[1] // 8 : size[1] // 3] = True
    masks[1][size[0] // 2 :, size[1] // 2 : size[1] // 2 + size[1] // 4] = True
    recipe = RECIPES["default"]
    field = Field("prompt_masks", 1)
    cells, large = (np.stack(x) for x in zip(*[stored(mask, recipe) for mask in masks], strict=True))
    assert region_disagreements(cells, packed(large), *size, recipe, field) == []
    found = region_disagreements(cells, packed(large[::-1]), *size, recipe, field)
    assert [f.met.split("; ")[1] for f in found] == ["it fits object 1", "it fits object 0"]
    (flipped,) = region_disagreements(cells[:1], packed(large[:1, :, ::-1]), *size, recipe, field)
    assert "flipped left to right" in flipped.met
