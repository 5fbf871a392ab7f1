"""Read pictures and regions from files, and write masks. A truncated picture is an error."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import pictures
from pipeline.pictures import decoding, open_image, upright
from pipeline.resize import Bool, UInt8
from shards.atomic import atomic_write
from shards.errors import BadInput, UserError
from shards.hidden import is_hidden
from shards.preview import tint

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def read_picture(path: Path) -> UInt8:
    """Read a picture: (H, W, 3) uint8 RGB, upright. Raises `BadInput` as `pipeline.pictures.read_picture` does."""
    _check_exists(path)
    return np.asarray(pictures.read_picture(path))


def read_region(path: Path) -> Bool:
    """Read a region: (H, W) bool, true where a palette index is not 0, or grey exceeds half the picture's maximum.

    Raises:
        BadInput: as `read_picture`.
    """
    _check_exists(path)
    image = upright(open_image(path), str(path))
    if image.mode == "P":
        return np.asarray(image) > 0
    with decoding(str(path)):
        values = np.asarray(image if image.mode[0] in "IF" else image.convert("L"))
    return values > values.max() / 2


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise BadInput("no such file", where=str(path))


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in `folder`, sorted by name with numbers compared by value."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not is_hidden(path.name)]
    except OSError as error:
        raise UserError("no folder of pictures", where=str(folder), met=str(error.strerror)) from None
    if not found:
        raise UserError("no pictures in the folder", where=str(folder), wanted=" ".join(sorted(_SUFFIXES)))
    return sorted(found, key=lambda path: _by_number(path.name))


def _by_number(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def overlay(picture: UInt8, masks: Bool) -> UInt8:
    """Return the picture (H, W, 3) with its masks (N, H, W) in colours."""
    return tint(picture, masks, 0.55)


def write_masks(out: Path, name: str, picture: UInt8 | None, masks: Bool, kind: str = "mask") -> list[str]:
    """Write `NAME.mask1.png`, ... (0 and 255, at the picture's size) and `NAME.overlay.png`.

    Args:
        picture: (H, W, 3); None for no overlay.
        masks: (N, H, W).
        kind: what stands in place of "mask" in the names.

    Returns:
        The names of the N mask files.
    """
    names = [f"{name}.{kind}{n}.png" for n in range(1, len(masks) + 1)]
    for file, mask in zip(names, masks, strict=True):
        write_file(out / file, _png(mask.view(np.uint8) * np.uint8(255)))
    if picture is not None:
        write_file(out / f"{name}.overlay.png", _png(overlay(picture, masks)))
    stale: list[Path] = []  # of an earlier answer with more masks; not listed: the folder may hold a whole video's
    while (earlier := out / f"{name}.{kind}{len(masks) + len(stale) + 1}.png").exists():
        stale.append(earlier)
    for earlier in reversed(stale):
        earlier.unlink()
    return names


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON; raises `UserError` if the file cannot be written."""
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # names of files may hold half a surrogate pair


def write_file(path: Path, data: bytes) -> None:
    """Write a file completely or not at all; raises `UserError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        raise UserError("cannot be written", where=str(path), met=str(error.strerror)) from None


def _png(pixels: UInt8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
