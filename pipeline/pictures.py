"""Decode pictures whole, to RGB, or refuse them: the files may hold anything."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pipeline.fit import advice, size_difference
from pipeline.input_files import read_input, refuse_pointer
from shards.errors import BadInput

MAX_PIXELS = 100_000_000
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that each call of `Image.open` may try. Without a list, Pillow tries all formats that it knows, whatever the
file's name, and runs another program on PostScript."""
_MAX_TEXT = 64 << 20  # bytes of an ICC profile or a text in a PNG, and of all texts of one; Pillow's own limit is 1 MB
_ORIENTATION = 0x0112  # tag of Exif 2.3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NOTES = "notes"  # key of our notes in `Image.info`
BROKEN_EXIF = "pictures whose EXIF cannot be read: taken as they are stored"
TURN_LEFT = "pictures with an EXIF orientation that their size does not show: taken as they are stored"
TURN_APPLIED = "pictures with an EXIF orientation that their size does not show: taken upright"
DARK = "grey pictures of 16 bits with no value above 255: nearly black"

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT


def read_picture(
    source: Path | bytes, size: tuple[int, int] | None = None, *, stored: bool = False, slack: int | None = None
) -> Image.Image:
    """Return a picture in mode RGB. An alpha channel is left out, 16 bits are scaled to 8, CMYK is converted.

    `notes_of` returns the doubts about it that were noted.

    Args:
        source: a file, or its bytes.
        size: (H, W) that annotations were made for. The picture is used as it is stored where that has this size, else
            upright by its EXIF orientation where that has it. Without a size it is used upright.
        stored: without a size, use the picture as it is stored.
        slack: pixels by which each side may differ from `size`, if no turn fits exactly. None: 0, and errors name no
            option.

    Raises:
        BadInput: no file, no picture, a truncated or an enormous one, one of another size, or one of more than 16 bits
            per channel, whose range is not standardized.
    """
    where = _place(source)
    notes = set[str]()
    image = open_image(source)
    with decoding(where):
        turn = _orientation(image, notes)
        as_stored = stored if size is None else _fits_as_stored(image, size, turn, slack or 0)
        if turn in _TURNS and (turn < 5 or image.width == image.height):  # the size is the same after the turn
            notes.add(TURN_LEFT if as_stored else TURN_APPLIED)
        form = image.format
        if turn in _TURNS and not as_stored:
            image = image.transpose(_TURNS[turn])
        if size is not None and (off := size_difference(size, (image.height, image.width))) > (slack or 0):
            raise BadInput(
                "picture and annotation differ in size",
                where=where,
                met=f"{image.height} x {image.width}",
                wanted=f"{size[0]} x {size[1]}",
                do="" if slack is None else advice(off),
            )
        picture = _to_rgb(image, form, where, notes)
    picture.info = {_NOTES: sorted(notes)} if notes else {}
    return picture


def notes_of(picture: Image.Image) -> list[str]:
    """Return the notes of `read_picture` on a picture: kinds of doubt, to be counted."""
    return list(picture.info.get(_NOTES, ()))


def upright(image: Image.Image, where: str = "") -> Image.Image:
    """Return an image turned by its EXIF orientation; unchanged where its EXIF cannot be read."""
    with decoding(where):
        turn = _orientation(image, set())
        return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def open_image(source: Path | bytes) -> Image.Image:
    """Return a picture decoded whole, in its own mode and as it is stored; raises `BadInput` as `read_picture`."""
    where = _place(source)
    data = source if isinstance(source, bytes) else read_input(source)
    refuse_pointer(data, where)
    with decoding(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bombs are checked by a limit of our own; broken EXIF is noted
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(
                    "too large a picture",
                    where=where,
                    met=f"{image.width} x {image.height}",
                    wanted=f"at most {MAX_PIXELS} pixels",
                )
            image.load()
            return image


@contextmanager
def decoding(where: str) -> Iterator[None]:
    """Turn all exceptions of Pillow about an image from a file into `BadInput`."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadInput(
            "too large a picture", where=where, met=str(error).split(",")[0], wanted=f"at most {MAX_PIXELS} pixels"
        ) from None
    except UnidentifiedImageError:
        raise BadInput(
            "cannot be read as a picture", where=where, met="none of these formats", wanted=", ".join(FORMATS)
        ) from None
    except Exception as error:
        raise BadInput(
            "cannot be read as a picture",
            where=where,
            met=(str(error).splitlines() or [""])[0] or type(error).__name__,
            wanted="a whole picture",
        ) from None


def _orientation(image: Image.Image, notes: set[str]) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none. Only this tag is read: others may be broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turn = image.getexif().get(_ORIENTATION, 1)
        turn = turn[0] if isinstance(turn, tuple) and turn else turn
    except MemoryError:
        raise
    except Exception:  # what Pillow raises depends on where the bytes are broken
        turn = None
    if isinstance(turn, int) and 0 <= turn <= 8:  # 0: some cameras write it for "unknown"
        return turn or 1
    notes.add(BROKEN_EXIF)
    return 1


def _fits_as_stored(image: Image.Image, size: tuple[int, int], turn: int, slack: int) -> bool:
    """Whether the picture fits `size` (H, W) as it is stored, and not only upright."""
    stored = size_difference(size, (image.height, image.width))
    upright = size_difference(size, image.size) if turn >= 5 else stored  # orientations from 5 on exchange the sides
    return stored <= slack and stored <= upright


def _to_rgb(image: Image.Image, form: str | None, where: str, notes: set[str]) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and form != "PPM"):  # of a PPM Pillow scales values to 16 bits
        values = np.asarray(image)
        raise BadInput(
            "a grey picture of 32 bits",
            where=where,
            met=f"mode {image.mode}, {values.min()} to {values.max()}",
            wanted="8 or 16 bits per channel",
            do="save it with 8 or 16 bits per channel",
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if 0 < values.max() <= 255:
            notes.add(DARK)
        grey = ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        raise BadInput(
            "no way to RGB", where=where, met=f"a picture of mode {image.mode}", wanted="grey, RGB, CMYK or a palette"
        ) from None


def _place(source: Path | bytes) -> str:
    return "" if isinstance(source, bytes) else str(source)
