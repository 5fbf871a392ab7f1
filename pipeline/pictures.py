"""Pictures out of files that may be anything: decoded whole, to RGB, or refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shards.errors import BadInput

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
_POINTERS = (b"version https://git-lfs", b"/annex/objects/", b"../.git/annex/")


def read_picture(source: Path | bytes, size: tuple[int, int] | None = None, *, stored: bool = False) -> Image.Image:
    """A picture of mode RGB. An alpha channel is left out, 16 bits are scaled to 8, CMYK is converted.

    Args:
        source: a file, or its bytes.
        size: (H, W) that annotations were made for. The bitmap is taken as it is stored where it has this size, else
            upright by its EXIF orientation where it has it then. Without a size it is taken upright.
        stored: without a size, take the bitmap as it is stored.

    Raises:
        BadInput: no file, no picture, a truncated or an enormous one, or one of another size.
    """
    where = _place(source)
    image = open_image(source)
    if image.size[::-1] != size and not (stored and size is None):
        ImageOps.exif_transpose(image, in_place=True)
    if size is not None and image.size[::-1] != size:
        met = f"{image.height} x {image.width}"
        raise BadInput("picture and annotation differ in size", where=where, met=met, wanted=f"{size[0]} x {size[1]}")
    if image.mode.startswith("I"):  # 16 bits a pixel
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadInput("grey values", where=where, met=f"{values.min()} to {values.max()}", wanted="16 bits")
        grey = ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        met = f"a picture of mode {image.mode}"
        raise BadInput("no way to RGB", where=where, met=met, wanted="grey, RGB, CMYK or a palette") from None


def open_image(source: Path | bytes) -> Image.Image:
    """A picture decoded whole, in its own mode and as it is stored; raises `BadInput` as `read_picture` does."""
    where = _place(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    refuse_pointer(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, by a limit of our own
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    met, wanted = f"{image.width} x {image.height}", f"at most {MAX_PIXELS} pixels"
                    raise BadInput("too large a picture", where=where, met=met, wanted=wanted)
                if image.mode == "F":
                    raise BadInput(
                        "a picture of floating point", where=where, met="mode F", wanted="8 or 16 bits a channel"
                    )
                image.load()
                return image
    except BadInput:
        raise
    except Image.DecompressionBombError as error:
        wanted = f"at most {MAX_PIXELS} pixels"
        raise BadInput("too large a picture", where=where, met=str(error).split(",")[0], wanted=wanted) from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        met = type(error).__name__ if "BytesIO" in str(error) else (str(error).splitlines() or [""])[0]
        raise BadInput("cannot be read as a picture", where=where, met=met, wanted="a whole picture") from None


def refuse_pointer(data: bytes, where: str) -> None:
    """Raise `BadInput` where a file's first bytes are those of a pointer to it."""
    if is_pointer(data):
        met, do = "a Git LFS or git-annex pointer", "fetch the file itself"
        raise BadInput("a pointer, not the file", where=where, met=met, wanted="what it points to", do=do)


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """A file's bytes; raises `BadInput` where there is none or it is larger than `most`."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        do = "its dataset's page in docs/datasets/ says where it is looked for"
        raise BadInput("no such file", where=str(path), met="nothing there", wanted="a file", do=do) from None
    except OSError as error:
        raise BadInput("cannot be read", where=str(path), met=str(error.strerror), wanted="a file") from None
    if len(data) > most:
        raise BadInput("too large a file", where=str(path), met=f"more than {most} bytes", wanted="at most that")
    return data


def is_pointer(data: bytes) -> bool:
    """Whether a file that begins with `data` is a Git LFS or git-annex pointer to the file that was meant."""
    return data.startswith(_POINTERS)


def _place(source: Path | bytes) -> str:
    return "" if isinstance(source, bytes) else str(source)
