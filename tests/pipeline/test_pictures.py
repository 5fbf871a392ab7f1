"""Pictures of every mode are converted; files that are no whole picture are refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from demo.make_sav import photograph
from pipeline.pictures import FORMATS, MAX_PIXELS, notes_of, open_image, read_picture, upright
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
    """A PNG of a few bytes whose header states this size."""
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


def test_a_palette_is_converted():
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
    expected = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(rgb(stored(Image.fromarray(values))), np.repeat(expected[:, :, None], 3, 2))


def test_cmyk_is_converted():
    data = stored(PHOTO.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(rgb(data).astype(int) - VALUES).mean() < 4  # inverted, as some files store it, would be 100 away


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_unless_the_stored_size_fits(orientation):
    data = turned(orientation)
    upright = UPRIGHT[orientation](VALUES)
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
    ],
)
def test_what_is_no_whole_picture_is_refused_with_values(data, what):
    with pytest.raises(BadInput, match=f"{what}; met .+; wanted .+"):
        open_image(data)


def test_a_missing_picture(tmp_path):
    with pytest.raises(BadInput, match=r"none\.jpg: no such file; met nothing there; wanted a file; .*docs/datasets"):
        read_picture(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xc5\xd0\xd3\xc6" + bytes(28)]
)
def test_postscript_starts_no_program(start, monkeypatch):
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "posix_spawn", started)
    with pytest.raises(BadInput, match=r"cannot be read as a picture; met none of these formats; wanted .*JPEG.*PNG"):
        read_picture(start + b"%%EndComments\nshowpage\n%%EOF\n")
    assert not {"EPS", "WMF", "PDF", "FITS", "GRIB", "HDF5"} & {*FORMATS}


@pytest.mark.parametrize(("kind", "mode"), [("TIFF", np.int32), ("TIFF", np.float32), ("TIFF", np.int16)])
def test_grey_of_32_bits_is_refused_with_its_range(kind, mode):
    values = np.array([[0, 3], [100, 255]], mode)
    with pytest.raises(
        BadInput, match=r"32 bits; met mode [IF], 0(\.0)? to 255(\.0)?; wanted 8 or 16 bits per channel"
    ):
        read_picture(stored(Image.fromarray(values), kind))


def test_grey_in_a_pgm_is_scaled_by_the_files_largest_value():
    assert rgb(b"P5 2 1 1023\n\x00\x00\x03\xff").tolist() == [[[0] * 3, [255] * 3]]
    with pytest.raises(BadInput, match=r"32 bits; met mode F, 1\.0 to 1\.0"):
        read_picture(b"Pf 1 1 -1.0\n\x00\x00\x80\x3f")


def test_16_bits_that_come_out_nearly_black_are_noted():
    for values, dark in (([0, 255], True), ([0, 256], False), ([0, 0], False)):
        picture = read_picture(stored(Image.fromarray(np.array([values], np.uint16))))
        assert notes_of(picture) == ["grey pictures of 16 bits with no value above 255: nearly black"] * dark


def test_a_long_icc_profile_and_a_long_text_do_no_harm():
    profile = np.random.default_rng(0).bytes(2 << 20)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("made with", "x" * (2 << 20), zip=True)
    assert np.array_equal(rgb(stored(PHOTO, icc_profile=profile, pnginfo=texts)), VALUES)
    texts.add_text("bomb", "x" * (80 << 20), zip=True)
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        read_picture(stored(PHOTO, pnginfo=texts))


SQUARE = PHOTO.crop((0, 0, 30, 30))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turn_that_the_size_does_not_show_is_noted(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    wide = stored(PHOTO, exif=exif)
    square = stored(SQUARE, exif=exif)
    left = ["pictures with an EXIF orientation that their size does not show: taken as they are stored"]
    applied = ["pictures with an EXIF orientation that their size does not show: taken upright"]
    mirrored = orientation in (2, 3, 4)
    turned = orientation > 1
    assert notes_of(read_picture(wide, (30, 40))) == left * mirrored == notes_of(read_picture(wide, stored=True))
    assert notes_of(read_picture(wide)) == applied * mirrored
    assert (
        notes_of(read_picture(square, (30, 30))) == left * turned and notes_of(read_picture(square)) == applied * turned
    )
    assert notes_of(read_picture(wide, (40, 30) if orientation > 4 else (30, 40))) == left * mirrored


def exif_of(*entries: tuple[int, int, int, int | bytes]) -> bytes:
    """EXIF of (tag, type, count, value or bytes of it), which need not fit one another."""
    at = 8 + 2 + 12 * len(entries) + 4
    body = b""
    listed = b""
    for tag, kind, count, value in entries:
        where = at + len(body) if isinstance(value, bytes) else value
        listed += struct.pack("<HHII", tag, kind, count, where)
        body += value if isinstance(value, bytes) else b""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + bytes(4) + body


TURN = (0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    "exif",
    [
        exif_of(TURN, (0x011A, 10, 1, struct.pack("<ii", -1, 0))),  # a rational that Pillow cannot write again
        exif_of(TURN, (0x8825, 4, 1, 0xFFFFFF)),  # GPS far behind the end
        exif_of(TURN, (0x010E, 5, 1, struct.pack("<II", 1, 2))),  # a number for a text
        exif_of((0x0112, 4, 1, 6)),
        exif_of((0x0112, 3, 2, 6)),
    ],
)
def test_a_turn_is_read_whatever_else_is_broken_in_its_exif(exif):
    assert np.array_equal(rgb(stored(PHOTO, "JPEG", quality=100, subsampling=0, exif=exif)), rgb_turned())


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"\0\x08\0\x02\x01\x12\0\x03",
        exif_of(TURN)[:20],
        exif_of((0x0112, 2, 2, 0x36)),
        exif_of((0x0112, 3, 1, 9)),
        exif_of((0x0112, 5, 1, struct.pack("<II", 6, 0))),
    ],
)
def test_broken_exif_leaves_the_picture_as_it_is_stored(exif):
    data = stored(PHOTO, "JPEG", exif=exif)
    assert np.array_equal(rgb(data), rgb(stored(PHOTO, "JPEG")))
    assert upright(open_image(data)).size == PHOTO.size


def rgb_turned() -> np.ndarray:
    return np.rot90(rgb(stored(PHOTO, "JPEG", quality=100, subsampling=0)), -1)


def test_whatever_a_decoder_raises_is_a_bad_input(monkeypatch):
    for name in ("load", "convert"):
        with monkeypatch.context() as patch:
            patch.setattr(PngImagePlugin.PngImageFile, name, lambda *_, **__: [].pop())
            with pytest.raises(BadInput, match="cannot be read as a picture; met pop from empty list"):
                read_picture(stored(PHOTO.convert("L")))


def test_slack_takes_annotations_of_nearly_the_pictures_size():
    wide = stored(PHOTO)  # 30 x 40
    with pytest.raises(BadInput, match=r"met 30 x 40; wanted 30 x 39; --mask-slack 1 takes"):
        read_picture(wide, (30, 39), slack=0)
    with pytest.raises(BadInput, match=r"met 30 x 40; wanted 30 x 39$"):  # a source without this option
        read_picture(wide, (30, 39))
    assert read_picture(wide, (30, 39), slack=1).size == (40, 30)
    with pytest.raises(BadInput, match="differ in size"):
        read_picture(wide, (40, 30), slack=3)
    assert read_picture(turned(6), (39, 30), slack=2).size == (30, 40) and read_picture(
        turned(6), (31, 40), slack=2
    ).size == (40, 30)
    nearly_square = PHOTO.crop((0, 0, 30, 31))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(nearly_square, exif=exif)
    assert read_picture(data, (31, 30), slack=1).size == (30, 31)  # an exact fit goes before one that is off
    assert read_picture(data, (30, 31), slack=1).size == (31, 30)
