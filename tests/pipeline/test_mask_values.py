"""Mask files of every kind that tools write: unambiguous ids are read, the rest is refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.mask_values import looks_like_edges, read_ids, read_values, values_of
from pipeline.masks import from_image
from pipeline.sources.refvos_masks import PngMasks
from shards.errors import BadInput

IDS = np.zeros((12, 16), np.uint8)
IDS[1:5, 2:8] = 1
IDS[6:11, 9:15] = 2
GREY = Image.fromarray(IDS)
FULL = Image.new("L", (16, 12), 255)


def stored(image: Image.Image, kind: str = "PNG", **more: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return Image.open(io.BytesIO(file.getvalue()), formats=(kind,))


def palette(ids: np.ndarray = IDS, colours: dict[int, tuple[int, ...]] = {}) -> Image.Image:  # noqa: B006
    image = Image.fromarray(ids, mode="P")
    table = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), **colours}
    image.putpalette([value for n in range(256) for value in table.get(n, (n, n, n))])
    return image


@pytest.mark.parametrize(
    ("image", "factor"),
    [
        (GREY, 1),
        (palette(), 1),
        (Image.fromarray(IDS.astype(np.uint16) * 300), 300),
        (Image.merge("RGB", [GREY] * 3), 1),
        (Image.merge("RGBA", [GREY] * 3 + [FULL]), 1),
        (Image.merge("RGBA", [GREY] * 3 + [GREY.point(lambda v: 255 * (v > 0))]), 1),
        (Image.merge("LA", [GREY, FULL]), 1),
    ],
)
def test_ids_are_read_as_they_were_drawn(image, factor):
    assert np.array_equal(values_of(stored(image)), IDS * np.uint16(factor))


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int16, ">u2"])
def test_ids_of_32_bits_and_of_tiff(dtype):
    image = stored(Image.fromarray((IDS.astype(dtype) * 70).astype(dtype)), "TIFF")
    assert np.array_equal(values_of(image), IDS.astype(np.int64) * 70)


def colours() -> Image.Image:
    return Image.merge("RGB", [GREY.point(lambda v: v * 100), GREY, GREY])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (stored(colours()), "a mask of colours; met mode RGB, 3 colours; wanted ids in one channel"),
        (stored(colours().convert("RGBA")), "a mask of colours; met mode RGBA"),
        (stored(Image.merge("LA", [GREY, FULL.point(lambda v: 90)])), "alpha differs from its values; met mode LA"),
        (stored(Image.merge("LA", [Image.new("L", (16, 12)), GREY])), "alpha differs from its values"),
        (stored(GREY.point(lambda v: v * 100), "JPEG"), "stored with losses; met JPEG with .* values, 0 to"),
        (stored(GREY, "JPEG"), "stored with losses"),
        (stored(GREY.convert("CMYK"), "TIFF"), "no mask; met a picture of mode CMYK"),
        (
            stored(Image.fromarray(-IDS.astype(np.int32)), "TIFF"),
            "no mask; met values from -2 on; wanted whole",
        ),
        (stored(Image.fromarray(IDS / np.float32(3)), "TIFF"), "no mask; met mode F, 0.0 to 0.6.*; wanted whole"),
        (stored(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "no mask; met mode F"),
    ],
)
def test_ambiguous_ids_are_refused_with_their_reason(image, message):
    with pytest.raises(BadInput, match=message):
        values_of(image)


def test_a_mask_of_one_object():
    on = IDS > 0
    for top in (1, 2, 100, 255):  # one value beside 0, whichever it is
        assert np.array_equal(from_image(stored(Image.fromarray(on * np.uint8(top)))), on)
    assert np.array_equal(from_image(stored(Image.fromarray(on * np.uint16(300)))), on)
    assert from_image(stored(Image.fromarray(np.full((3, 3), 7, np.uint8)))).all()
    edges = Image.fromarray(np.array([[0, 90, 200, 255]], np.uint8))
    assert from_image(stored(edges)).tolist() == [[False, False, True, True]]
    lossy = stored(Image.fromarray(on * np.uint8(255)), "JPEG", quality=60)
    assert (from_image(lossy) == on).mean() > 0.95 and len(np.unique(np.asarray(lossy))) > 2
    with pytest.raises(BadInput, match=r'a mask of several values; met 0, 1, 2; wanted one .*give .* "value"'):
        from_image(stored(GREY))
    assert np.array_equal(from_image(stored(GREY), 2), IDS == 2)


VOC = {255: (224, 224, 192)}


def with_edge(value: int = 255) -> np.ndarray:
    ids = IDS.copy()
    ids[0] = value
    return ids


def test_pixels_of_no_object(tmp_path):
    file = tmp_path / "m.png"
    for image, ignored, expected in (
        (palette(with_edge(), VOC), None, [1, 2]),
        (palette(with_edge(), VOC), 0, [1, 2, 255]),
        (palette(with_edge()), None, [1, 2, 255]),  # another palette
        (Image.fromarray(with_edge()), None, [1, 2, 255]),
        (Image.fromarray(with_edge()), 255, [1, 2]),
        (Image.fromarray(with_edge(9)), 9, [1, 2]),
        (palette((IDS > 0) * np.uint8(255), VOC), None, [255]),  # nothing else is there: it is the object
    ):
        image.save(file)
        values, ids = read_ids(file, ignored)
        assert ids == expected and np.array_equal(values, np.asarray(image))
    assert not from_image(stored(palette(np.where(with_edge() == 2, 0, with_edge()), VOC)))[0].any()


def test_grey_edges_are_not_taken_for_objects():
    disc = np.hypot(*np.mgrid[-20:21, -20:21])
    soft = (np.clip(15.5 - disc, 0, 1) * 255).astype(np.uint8)
    assert looks_like_edges(soft, [int(n) for n in np.unique(soft) if n])
    assert not looks_like_edges(IDS, [1, 2]) and not looks_like_edges((disc < 9) * np.uint8(255), [255])
    specks = IDS.copy()
    specks[0, 0] = 3
    assert not looks_like_edges(specks, [1, 2, 3])


def test_masks_of_videos_are_read_as_other_masks(tmp_path: Path):
    for n, image in enumerate(
        (palette(), Image.fromarray(IDS.astype(np.uint16) * 150), Image.merge("RGB", [GREY] * 3))
    ):
        image.save(tmp_path / f"{n}.png")
    colours().save(tmp_path / "3.png")
    frames = PngMasks(tmp_path, list("0123"))
    assert [frames.shown(n) for n in range(3)] == [{"1", "2"}, {"150", "300"}, {"1", "2"}]
    assert np.array_equal(frames.mask(1, "300", 12, 16), IDS == 2) and frames.size(2) == (12, 16)
    with pytest.raises(BadInput, match=r"3\.png: a mask of colours"):
        frames.shown(3)
    with pytest.raises(BadInput, match=r"3\.png: a mask of colours"):
        read_values(tmp_path / "3.png")
