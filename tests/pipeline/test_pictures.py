"""What becomes of pictures of every mode, and of files that are no whole picture."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.make_sav import photograph
from pipeline.pictures import MAX_PIXELS, open_image, read_picture
from shards.errors import BadInput

PHOTO = photograph("chelsea").convert("RGB").crop((60, 60, 100, 90))  # 30 x 40
VALUES = np.asarray(PHOTO)
# Where the stored bitmap's rows and columns are on the upright picture (Exif 2.3, tag 0x0112).
UPRIGHT = {
    **{1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud},
    **{5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1)},
    **{7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1)},
}


def stored(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(PHOTO, exif=exif)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def rgb(data: bytes, **more: Any) -> np.ndarray:
    picture = read_picture(data, **more)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_grey_has_three_equal_channels():
    grey = PHOTO.convert("L")
    assert np.array_equal(rgb(stored(grey)), np.repeat(np.asarray(grey)[:, :, None], 3, 2))


def test_a_palette_is_looked_up():
    image = PHOTO.quantize(16)
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(rgb(stored(image)), colours[np.asarray(image)])
    assert np.array_equal(rgb(stored(image, transparency=3)), colours[np.asarray(image)])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_left_out_and_nothing_is_mixed(mode):
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray(VALUES[..., 0]))
    assert np.array_equal(
        rgb(stored(image)), VALUES if mode == "RGBA" else np.asarray(PHOTO.convert("L").convert("RGB"))
    )


def test_16_bits_are_scaled_to_8():
    values = np.array([[0, 128, 129, 257, 385, 386, 32768, 65535]], np.uint16)
    wanted = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(rgb(stored(Image.fromarray(values))), np.repeat(wanted[:, :, None], 3, 2))


def test_cmyk_is_converted():
    data = stored(PHOTO.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(rgb(data).astype(int) - VALUES).mean() < 4  # inverted, as some files store it, would be 100 away


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_unless_the_stored_bitmap_is_meant(orientation):
    data, upright = turned(orientation), UPRIGHT[orientation](VALUES)
    assert np.array_equal(rgb(data), upright)
    assert np.array_equal(rgb(data, stored=True), VALUES)
    assert np.array_equal(rgb(data, size=(30, 40)), VALUES)  # what annotations were made for decides
    if orientation > 4:
        assert np.array_equal(rgb(data, size=(40, 30)), upright)
    with pytest.raises(BadInput, match=r"differ in size; met .* x .*; wanted 31 x 40"):
        read_picture(data, (31, 40))


@pytest.mark.parametrize("size", [(12_000, 10_000), (60_000, 60_000)])  # Pillow alone would warn, and refuse
def test_a_decompression_bomb_is_not_decompressed(size):
    with pytest.raises(BadInput, match=f"too large a picture; met .*; wanted at most {MAX_PIXELS} pixels"):
        read_picture(bomb(*size))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (stored(PHOTO, "JPEG")[:700], "cannot be read as a picture"),
        (stored(PHOTO)[:700], "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (b"<html>not found</html>", "cannot be read as a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer, not the file"),
        (b"/annex/objects/MD5E-s3--0.jpg", "a pointer, not the file"),
        (stored(Image.fromarray(np.zeros((3, 4), np.float32)), "TIFF"), "a picture of floating point"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_what_was_met_and_wanted(data, what):
    with pytest.raises(BadInput, match=f"{what}; met .+; wanted .+"):
        open_image(data)


def test_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none\.jpg: no such file; met nothing there; wanted a file; .*docs/datasets"):
        read_picture(tmp_path / "none.jpg")
