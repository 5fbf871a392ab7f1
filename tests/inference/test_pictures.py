"""Reading pictures of every kind, and files that are no pictures."""

import numpy as np
import pytest
from PIL import Image

from inference.pictures import picture_files, read_picture, read_region, write_masks
from pipeline.pictures import MAX_PIXELS
from shards.errors import UserError


@pytest.fixture
def small() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_an_rgb_picture_is_read_unchanged(small, tmp_path):
    Image.fromarray(small).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), small)


def test_exif_orientation_is_applied(small, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(small).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), np.rot90(small, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(small, tmp_path, mode):
    image = Image.fromarray(small).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    assert np.array_equal(read_picture(path), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[[v] * 3 for v in (0, 1, 128, 255)]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_half_a_picture_is_no_picture(tmp_path, photos, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photos[0]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"a\.{suffix}: cannot be read as a picture"):
        read_picture(path)


def test_unreadable_and_missing_pictures_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "f.tif")
    for name, what in (("a.jpg", "cannot be read"), ("none.jpg", "no such file"), ("f.tif", "32 bits; met mode F")):
        with pytest.raises(UserError, match=what):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(tmp_path)


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert side * side > MAX_PIXELS
    with pytest.raises(UserError, match="too large a picture"):
        read_picture(tmp_path / "a.png")


def test_regions(tmp_path):
    region = np.zeros((4, 5), bool)
    region[1:3, 2:] = True
    Image.fromarray(region).save(tmp_path / "bits.png")
    Image.fromarray(region.astype(np.uint8)).save(tmp_path / "ones.png")
    Image.fromarray(region.astype(np.uint8) * 255).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(region.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    indexed = Image.fromarray(region.astype(np.uint8) * 3, mode="P")
    indexed.putpalette([0, 0, 0] * 4)
    indexed.save(tmp_path / "index.png")
    for path in tmp_path.iterdir():
        assert np.array_equal(read_region(path), region), path.name
    Image.new("L", (5, 4)).save(tmp_path / "empty.png")
    assert not read_region(tmp_path / "empty.png").any()


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("10.jpg", "9.jpg", "000.png", "notes.txt", "b²2.png", "b10.png"):
        (tmp_path / name).touch()
    assert [p.name for p in picture_files(tmp_path)] == ["000.png", "9.jpg", "10.jpg", "b10.png", "b²2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        picture_files(tmp_path / "empty")
    with pytest.raises(UserError, match="no folder"):
        picture_files(tmp_path / "none")


def test_masks_and_overlay(small, tmp_path):
    masks = np.zeros((2, 6, 9), bool)
    masks[0, :2] = True
    masks[1, 5] = True
    names = write_masks(tmp_path / "new", "x[1]", small, masks)
    assert names == ["x[1].mask1.png", "x[1].mask2.png"]
    for name, mask in zip(names, masks, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / name)), mask * np.uint8(255))
    overlay = np.asarray(Image.open(tmp_path / "new" / "x[1].overlay.png")).astype(int)
    assert np.array_equal(overlay[2:5], small[2:5])
    assert (overlay[:2, :, 0] >= small[:2, :, 0] // 2).all() and overlay[:2, :, 0].mean() > overlay[
        :2, :, 1
    ].mean() + 50
    write_masks(tmp_path / "new", "x[1]", small, masks[:1])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["x[1].mask1.png", "x[1].overlay.png"]
