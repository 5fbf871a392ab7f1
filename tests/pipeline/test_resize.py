"""Each of the four formats against torch and torchvision, for any size of the original."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from pipeline import resize
from pipeline.cropped import Mask
from pipeline.weights import weights
from shards.recipe import RECIPES, named_recipe

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 700))
SEEDS = st.integers(0, 2**32 - 1)
MODES = {"default": InterpolationMode.BILINEAR, "sa2va": InterpolationMode.BICUBIC}


def blob(seed: int, height: int, width: int) -> np.ndarray:
    """A mask like an annotator's: a rectangle, maybe thin or tiny, with a ragged edge."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.sort(rng.integers(0, side + 1, 2)) for side in (height, width))
    mask = np.zeros((height, width), bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask & (rng.random((height, width)) < rng.choice([0.5, 0.9, 1.0]))


def as_torch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@settings(max_examples=25)
@given(SIZES, SEEDS, st.sampled_from(["default", "sa2va"]), st.sampled_from([448, 1024]))
def test_picture_equals_torchvision(size, seed, recipe, side):
    original = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    expected = TF.pil_to_tensor(TF.resize(Image.fromarray(original), [side, side], MODES[recipe]))
    assert np.array_equal(resize.picture(original, side, RECIPES[recipe]), expected.numpy())


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_the_compiled_loop_and_pillow_give_equal_bytes(kind, monkeypatch):
    if resize._resample is None:
        pytest.skip("not compiled here")
    recipe = RECIPES["default" if kind == "bilinear" else "sa2va"]
    rng = np.random.default_rng(7)
    extremes = rng.integers(0, 2, (300, 451, 3), np.uint8) * 255  # where bicubic overshoots the most
    large = rng.integers(0, 256, (1500, 2250, 3), np.uint8)
    several = np.tile(large[:500], (4, 1, 1))  # Pillow keeps it in several pieces of memory
    pictures = [extremes, large, large[:427, :640], large[:1024, :1024], large[:1, :3], large[:700, :448], several]
    compiled = [resize.picture(picture, side, recipe) for picture in pictures for side in (448, 1024)]
    monkeypatch.setattr(resize, "_resample", None)
    pillow = [resize.picture(picture, side, recipe) for picture in pictures for side in (448, 1024)]
    assert all(np.array_equal(one, other) for one, other in zip(compiled, pillow, strict=True))


@given(st.data())
@settings(max_examples=60)
def test_the_compiled_loop_reads_and_writes_nothing_beyond_its_buffers(data):
    if resize._resample is None:
        pytest.skip("not compiled here")
    height, width = data.draw(SIZES)
    columns, rows = (list(weights(side, 448, "bicubic")) for side in (width, height))
    good = [
        bytes(4 * height * width),
        height,
        width,
        448,
        tuple(columns),
        tuple(rows),
        np.empty((3, 448, 448), np.uint8),
    ]
    resize._resample.resample(*good)
    bad = [*good]
    fault = data.draw(
        st.sampled_from(["pixels", "height", "size", "out", "start", "order", "count", "weight", "longer", "fewer"])
    )
    if fault == "pixels":
        bad[0] = bad[0][:-1]
    elif fault == "height":
        bad[1] += 1
    elif fault == "size":
        bad[3] = 480
    elif fault == "out":
        bad[6] = bad[6][:2].copy()
    else:
        taps = [part.copy() for part in columns]
        at = data.draw(st.integers(0, 447))
        if fault == "start":
            taps[0][at] = data.draw(st.sampled_from([-1, width, 2**31 - 1]))
        elif fault == "order":
            taps[0][:2] = 1, 0
        elif fault == "weight":
            taps[2][at, 0] = data.draw(st.sampled_from([2**26, -(2**26) - 1]))
        elif fault == "count":
            taps[1][at] = data.draw(st.sampled_from([0, -1, taps[2].shape[1] + 1, 2**31 - 1]))
        elif fault == "longer":
            taps[2] = np.append(taps[2].ravel(), np.int32(0))
        else:
            taps[0] = taps[0][:-1]
        bad[4] = tuple(taps)
    with pytest.raises(ValueError, match="do not fit"):
        resize._resample.resample(*bad)


@pytest.mark.parametrize("recipe", MODES)
@pytest.mark.parametrize("side", [448, 1024])
def test_a_picture_of_half_the_size_equals_pillow(side, recipe):
    original = np.random.default_rng(side).integers(0, 256, (side // 2, side // 2, 3), np.uint8)
    original[: side // 4] = original[: side // 4] // 128 * 255  # the ends of the range, where rounding could leave it
    resized = Image.fromarray(original).resize((side, side), getattr(Image.Resampling, MODES[recipe].name))
    assert np.array_equal(resize.picture(original, side, RECIPES[recipe]), np.asarray(resized).transpose(2, 0, 1))


@settings(max_examples=40)
@given(SIZES, SEEDS)
def test_mask_samples_pixel_centres(size, seed):
    mask = blob(seed, *size)
    expected = F.interpolate(as_torch(mask), (1024, 1024), mode="nearest-exact")[0, 0].bool().numpy()
    assert np.array_equal(resize.mask(mask, 1024), expected)


@settings(max_examples=100)
@given(SIZES, SEEDS)
def test_prompt_cells_of_each_pooling(size, seed):
    mask = blob(seed, *size)
    recipe = RECIPES["default"]
    centre = F.interpolate(as_torch(mask), (16, 16), mode="nearest-exact")[0, 0].bool().numpy()
    corner = F.interpolate(as_torch(mask), (16, 16), mode="nearest")[0, 0].bool().numpy()
    # Pillow's nearest: between 448 and a size that shares no power of two, its rounding is not torch's.
    at_448 = np.array(Image.fromarray(mask.view(np.uint8)).resize((448, 448), Image.Resampling.NEAREST))
    area = (F.adaptive_avg_pool2d(as_torch(at_448), 16) > 0.5)[0, 0].numpy()
    for pooling, expected in (("center", centre), ("corner", corner), ("area", area)):
        assert np.array_equal(resize.prompt_cells(mask, pooling, recipe), expected), pooling


def test_centre_and_corner_differ_where_pillow_and_torch_do():
    mask = blob(3, 512, 512)
    centre = resize.prompt_cells(mask, "center", RECIPES["default"])
    assert not np.array_equal(centre, resize.prompt_cells(mask, "corner", RECIPES["default"]))


@settings(max_examples=60)
@given(SIZES, SEEDS)
def test_coverage_equals_adaptive_average_pooling(size, seed):
    mask = blob(seed, *size)
    assert np.array_equal(resize.coverage(mask, 16), F.adaptive_avg_pool2d(as_torch(mask), 16)[0, 0].numpy())


def fill_one_by_one(cells: torch.Tensor, mask: np.ndarray, least: int) -> np.ndarray:
    """The rule of the recipe, word for word, on torch's own pooling."""
    cells = cells.clone()
    share = F.adaptive_avg_pool2d(as_torch(mask), 16)[0, 0]
    while cells.sum() < least:
        best = None
        for row in range(16):
            for column in range(16):
                off = not cells[row, column] and share[row, column] > 0
                if off and (best is None or share[row, column] > share[best]):
                    best = (row, column)
        if best is None:
            break
        cells[best] = True
    return cells.numpy()


@settings(max_examples=60)
@given(SIZES, SEEDS, st.integers(0, 9))
def test_small_regions_are_filled_in_order_of_coverage(size, seed, least):
    mask = blob(seed, *size)
    recipe = RECIPES["default"]
    cells = resize.prompt_cells(mask, "center", recipe)
    expected = fill_one_by_one(torch.from_numpy(cells.copy()), mask, 4)
    if cells.sum() < 4:
        assert np.array_equal(resize.fill_small(cells, mask, recipe), expected)
    assert expected.any() == mask.any()


def test_an_object_of_one_pixel_has_a_prompt():
    mask = np.zeros((2000, 1500), bool)
    mask[1, 1498] = True
    recipe = named_recipe("default")
    cells = resize.prompt_cells(mask, "center", recipe)
    assert not cells.any()
    filled = resize.fill_small(cells, mask, recipe)
    assert np.argwhere(filled).tolist() == [[0, 15]]


@settings(max_examples=15)
@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), SEEDS)
def test_predicted_masks_are_enlarged_in_two_steps(size, seed):
    logits = 5 * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(seed))
    recipe = RECIPES["sa2va"]
    large = F.interpolate(logits[None], (1024, 1024), mode="bilinear", align_corners=False)
    assert torch.equal(resize.sam_logits(logits, 1024), large[0])
    expected = F.interpolate(large, size, mode="bilinear", align_corners=False)[0].sigmoid() > 0.5
    assert np.array_equal(resize.predicted_masks(logits, *size, recipe), expected.numpy())


@pytest.mark.parametrize("size", [(300, 451), (1024, 1024), (1500, 2000)])
def test_mask_prompts_are_masks_at_the_picture_s_size_brought_to_sam_2_s(size):
    """Against Pillow, whose bilinear filter is SAM 2's for prompts. Values within rounding of a half may differ."""
    coarse = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(4))
    logits = 5 * F.interpolate(coarse[None], (256, 256), mode="bicubic")[0]
    prompts = resize.mask_prompts(logits, *size, 1024)
    assert prompts.shape == (3, 1, 1024, 1024) and prompts.dtype == torch.float32
    for prompt, values in zip(prompts, logits, strict=True):
        full = F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0] > 0
        image = Image.fromarray(full.numpy().astype(np.float32))
        expected = np.asarray(image.resize((1024, 1024), Image.Resampling.BILINEAR)) >= 0.5
        assert 0.2 < expected.mean() < 0.8 and (prompt[0].numpy() != expected).mean() < 1e-4
        assert set(prompt.unique().tolist()) == {0, 1}


def test_enlarging_in_two_steps_differs_from_one_step():
    logits = 5 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    direct = F.interpolate(logits[None], (333, 500), mode="bilinear", align_corners=False)[0] > 0
    assert (resize.predicted_masks(logits, 333, 500, RECIPES["sa2va"]) != direct.numpy()).any()
    assert resize.predicted_masks(logits[:0], 333, 500, RECIPES["sa2va"]).shape == (0, 333, 500)


@given(
    arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    st.sampled_from([16, 64, 1024]),
    st.booleans(),
)
def test_the_compiled_loop_and_numpy_sample_the_same_pixels(mask, size, by_columns):
    if resize._masks is None:
        pytest.skip("not compiled here")
    stored = Mask.from_array(np.asfortranarray(mask) if by_columns else mask)
    bits = np.zeros((size, size // 8), np.uint8)
    pixels = resize.mask_bits(stored, size, bits)
    compiled = resize.mask(stored, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_masks", None)
        expected = resize.mask(stored, size)
        in_numpy = np.zeros_like(bits)
        covered = resize.coverage(stored, 16)
        assert resize.mask_bits(stored, size, in_numpy) == expected.sum() == pixels
    centres = (2 * np.arange(size) + 1)[:, None] * mask.shape // (2 * size)
    assert np.array_equal(expected, mask[np.ix_(centres[:, 0], centres[:, 1])])
    assert np.array_equal(compiled, expected) and np.array_equal(bits, in_numpy)
    assert np.array_equal(np.unpackbits(bits, axis=1), expected)
    assert np.array_equal(resize.coverage(stored, 16), covered)


@pytest.mark.parametrize("loops", ["compiled", "numpy"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_any_byte_but_zero_is_a_pixel_of_the_mask(loops, by_columns, monkeypatch):
    """Pillow stores True as 255 in a picture of mode "1", and numpy takes it over as bool."""
    if loops == "numpy":
        monkeypatch.setattr(resize, "_masks", None)
    picture = Image.new("1", (61, 40))
    picture.paste(1, (3, 5, 60, 38))
    foreign = np.asarray(picture)
    assert foreign.view(np.uint8).max() == 255
    plain = foreign.view(np.uint8) != 0
    found = []
    for mask in (plain, foreign):
        stored = Mask.from_array(np.asfortranarray(mask) if by_columns else mask)
        bits = np.zeros((64, 8), np.uint8)
        pixels = resize.mask_bits(stored, 64, bits)
        pixels_set = resize.mask(stored, 64).view(np.uint8) != 0
        found.append((pixels, bits.tobytes(), resize.coverage(stored, 16).tobytes(), pixels_set.tobytes()))
    assert found[0] == found[1]


PLACES = {"pixels": [1] * 17, "rows": [0] * 9, "columns": [0] * 7, "width": 5, "size": 0, "left": -1, "top": 1 << 31}


@pytest.mark.parametrize(("what", "value"), PLACES.items())
def test_the_compiled_loop_refuses_places_outside_its_buffers(what, value):
    if resize._masks is None:
        pytest.skip("not compiled here")
    good = {"pixels": np.ones((4, 4), np.uint8), "height": 4, "width": 4, "by_columns": False}
    good |= {"top": 2, "left": 3, "rows": np.arange(8, dtype=np.int32), "columns": np.arange(8, dtype=np.int32)}
    good |= {"out": np.zeros((8, 8), np.uint8), "size": 8, "packed": False}
    assert resize._masks.sample(*good.values()) == 16 == good["out"][2:6, 3:7].sum()
    lines = {"rows": np.array([0, 3, 5, -(2**31), 9, 2, 2**31 - 1, 2], np.int32)}  # they do not ascend
    assert resize._masks.sample(*(good | lines | {"out": np.zeros((8, 8), np.uint8)}).values()) == 8
    bad = good | {what: np.array(value, good[what].dtype) if isinstance(value, list) else value}
    with pytest.raises(ValueError, match="do not fit"):
        resize._masks.sample(*bad.values())
