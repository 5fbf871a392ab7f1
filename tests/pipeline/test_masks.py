"""Decoded masks, compared with rasterising and run lengths written here, and with pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from pipeline import cropped
from pipeline.cropped import Mask
from pipeline.masks import from_array, from_coco, from_image, read_coco
from shards.errors import BadInput

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SQUARE = [[1, 1, 6, 1, 6, 5, 1, 5]]


def run_lengths(mask: np.ndarray) -> list[int]:
    """Column by column, zeros first."""
    flat = mask.T.ravel()
    counts = []
    value = False
    run = 0
    for pixel in flat:
        if pixel != value:
            counts.append(run)
            value = pixel
            run = 0
        run += 1
    return [*counts, run]


@given(arrays(np.bool_, SHAPES))
def test_run_lengths_plain_and_compressed_give_back_the_mask(mask):
    height, width = mask.shape
    plain = {"size": [height, width], "counts": run_lengths(mask)}
    packed = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    text = {**packed, "counts": packed["counts"].decode()}
    for given_mask in (plain, packed, text):
        decoded = from_coco(given_mask, height, width)
        assert decoded.dtype == np.bool_ and np.array_equal(decoded, mask)


@given(arrays(np.bool_, SHAPES))
def test_the_compiled_loop_finds_the_rectangle_around_the_pixels(mask):
    if cropped._masks is None:
        pytest.skip("not compiled here")
    compiled = read_coco(coco.encode(np.asfortranarray(mask.view(np.uint8))), *mask.shape)
    expected = Mask.from_array(mask)
    assert (compiled.shape, compiled.top, compiled.left) == (expected.shape, expected.top, expected.left)
    assert compiled.pixels.dtype == np.bool_ and np.array_equal(compiled.pixels, expected.pixels)


@given(st.binary(max_size=12).map(lambda counts: bytes(48 + byte % 64 for byte in counts)))
def test_the_compiled_loop_takes_the_run_lengths_that_numpy_takes(counts):
    if cropped._masks is None:
        pytest.skip("not compiled here")
    results = []
    for loops in (cropped._masks, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cropped, "_masks", loops)
            try:
                results.append(from_coco({"size": [3, 4], "counts": counts}, 3, 4).tobytes())
            except BadInput as error:
                results.append(str(error))
    assert results[0] == results[1]


@given(arrays(np.bool_, SHAPES), st.data())
def test_damaged_run_lengths_are_never_a_mask_of_another_size(mask, data):
    height, width = mask.shape
    counts = bytearray(coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"])
    place = data.draw(st.integers(0, len(counts) - 1))
    counts[place] = data.draw(st.integers(0, 255))
    given_mask = {"size": [height, width], "counts": bytes(counts)}
    try:
        decoded = from_coco(given_mask, height, width)
    except BadInput:
        return
    # A mask that is decoded fills the picture: encoded and decoded again it is the same.
    again = coco.decode(coco.encode(np.asfortranarray(decoded.view(np.uint8)))).astype(bool)
    assert decoded.shape == (height, width) and np.array_equal(again, decoded)


@pytest.mark.parametrize(
    "counts",
    [b"", b"P", "\u20ac5", b"\x00\x01", b"ooooooooooo0", [3, 4], [12, -2], [12.0], None, "11", b"0", [11], [13]],
)
def test_run_lengths_that_do_not_fill_the_picture_are_refused(counts):
    with pytest.raises(BadInput):
        from_coco({"size": [3, 4], "counts": counts}, 3, 4)


@pytest.mark.parametrize("foreign", ["\u20ac", "\udc80", "\xff"])
def test_run_lengths_with_foreign_letters_are_refused(foreign):
    """No letter may be taken for "?", which is a code of run lengths."""
    sound = coco.encode(np.asfortranarray(np.ones((30, 20), np.uint8)))["counts"].decode()
    for place in range(len(sound) + 1):
        with pytest.raises(BadInput):
            read_coco({"size": [30, 20], "counts": sound[:place] + foreign + sound[place:]}, 30, 20)


def test_run_lengths_of_another_size_are_refused():
    packed = coco.encode(np.asfortranarray(np.ones((4, 3), np.uint8)))
    with pytest.raises(BadInput, match=r"differ in size; met size \[4, 3\]; wanted \[3, 4\]"):
        from_coco(packed, 3, 4)


def test_a_polygon_is_filled():
    mask = from_coco(SQUARE, 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[1:5, 1:6] = True
    assert np.array_equal(mask, expected)


def test_overlapping_polygons_of_one_object_are_united():
    other = [4, 3, 9, 3, 9, 7, 4, 7]
    both = from_coco([*SQUARE, other], 8, 10)
    assert both.dtype == np.bool_  # a sum would hold a 2
    assert np.array_equal(both, from_coco(SQUARE, 8, 10) | from_coco([other], 8, 10))
    assert (from_coco(SQUARE, 8, 10) & from_coco([other], 8, 10)).any()


@pytest.mark.parametrize("short", [[], [1, 1], [1, 1, 5, 5]])
def test_polygons_of_fewer_than_three_corners_have_no_area(short):
    assert not from_coco([short], 8, 10).any()
    assert np.array_equal(from_coco([short, *SQUARE], 8, 10), from_coco(SQUARE, 8, 10))
    assert np.array_equal(from_coco([*SQUARE, short], 8, 10), from_coco(SQUARE, 8, 10))


def test_a_polygon_that_leaves_the_picture_is_cut():
    mask = from_coco([[-5, -5, 3, -5, 3, 3, -5, 3]], 8, 10)
    assert mask[:3, :3].all() and mask.sum() == 9


@pytest.mark.parametrize(
    "bad", [[[1, 1, 2, 2, 3]], [["a"] * 6], [[float("nan")] * 6], [[float("inf")] * 6], [{}], [3, 4]]
)
def test_broken_polygons_are_refused(bad):
    with pytest.raises(BadInput, match="broken polygon"):
        from_coco(bad, 8, 10)


@pytest.mark.parametrize("bad", [[1, 1, 3e6, 1, 3e6, 5], [-3e6] * 6, [1, 1, 1e5, 1] * 12])
def test_polygons_that_need_too_much_memory_are_refused(bad):
    with pytest.raises(BadInput, match=r"broken polygon; met .* pixels around"):
        from_coco([bad], 8, 10)


@pytest.mark.parametrize("other", [None, "text", 3, {}, {"counts": "0"}])
def test_what_is_no_mask_is_refused(other):
    with pytest.raises(BadInput, match="no mask"):
        from_coco(other, 8, 10)


def test_masks_stored_as_pictures():
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel())
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    assert from_image(palette, 2).tolist() == (ids == 2).tolist()
    assert from_image(palette).tolist() == (ids > 0).tolist()
    assert from_image(Image.fromarray(ids), 1).tolist() == (ids == 1).tolist()
    one_bit = Image.fromarray((ids > 0).astype(np.uint8) * 255).convert("1")
    assert from_image(one_bit).dtype == np.bool_ and from_image(one_bit).tolist() == (ids > 0).tolist()
    assert from_image(one_bit).view(np.uint8).max() == 1  # what the formats are made of: Pillow's True is 255
    with pytest.raises(BadInput, match="mode RGB"):
        from_image(palette.convert("RGB"))


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_grey_masks_are_cut_at_half_of_their_range(top):
    values = np.array([[0, top // 2, top // 2 + 1, top]], np.uint16 if top > 255 else np.uint8)
    assert from_array(values).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("bad", [np.array([[np.nan]]), np.array([[-1.0]]), np.zeros(3), np.array([[70000]])])
def test_numbers_that_are_no_mask_are_refused(bad):
    with pytest.raises(BadInput, match="no mask"):
        from_array(bad)
