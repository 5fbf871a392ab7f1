"""Groups of samples that show the same thing: those of one raw file, one folder, or one picture or video."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.format import key_for

Group = Literal["sample", "file", "folder", "picture"]
"""Kind of group that stays together when samples are divided.

- sample: each sample alone.
- file: all samples of one raw file, such as the objects of a video.
- folder: all files of a folder.
- picture: all samples of one picture or video, in all sets.
"""
GROUPS: tuple[Group, ...] = get_args(Group)

_HASH = 17  # characters of a key after its readable stem: "-" and 16 hexadecimal digits
_COCO = re.compile(r"coco_(?:train|val|test|unlabeled)\d{4}_(\d+)")
_EXPORTED = re.compile(r"_(?:jpe?g|png|bmp|webp)$")
_NUMBER = re.compile(r"#\d+$")
_FRAMES = {".npz", ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Suffixes of files that hold one or two frames of a video, not all of it."""


def named_group(name: str) -> Group:
    """Return the kind of group `name`; raises `UserError` where there is none."""
    for group in GROUPS:
        if group == name:
            return group
    raise UserError("no such group", met=name, wanted=" or ".join(GROUPS))


class Groups(NamedTuple):
    """The groups of a sample in the index: hashes of names, each 1 to 2**64 - 1."""

    file: int
    folder: int
    picture: int
    """The same as `folder` where several frames of a video make a sample and the video is a folder. Each text alone is
    a picture of its own."""


def groups_of(key: str, path: str, frames: int) -> Groups:
    """Return the groups of the sample `key`.

    Args:
        path: of its raw file, relative to the source's root; a # and what follows tell the samples of a file apart.
        frames: number of frames.
    """
    file = _file(path)
    folder = str(PurePosixPath(file).parent)
    is_video = frames > 1 and folder != "." and PurePosixPath(file).suffix.lower() in _FRAMES
    # Of a name without a dot the key's readable part has the number that tells the samples of a folder of frames apart.
    picture = folder if is_video else picture_name(key_for(_NUMBER.sub("", path))) if frames else key
    return Groups(_hashed(file), _hashed(folder), _hashed(picture))


def group_name(key: str, path: str, frames: int, by: Group) -> str:
    """Return the name of the group of the sample `key` that `by` asks for; other arguments as of `groups_of`."""
    if by == "picture":
        return f"{groups_of(key, path, frames).picture:016x}"
    return {"sample": key, "file": _file(path), "folder": str(PurePosixPath(_file(path)).parent)}[by]


def picture_name(key: str) -> str:
    """Return the name that the picture or video of the sample `key` has in every set that holds it.

    It is the stem of its file in small letters, COCO's without prefix and zeros. Different pictures may share it:
    then they stay together needlessly.

    >>> picture_name("COCO_train2014_000000000036-0123456789abcdef")
    '36'
    """
    stem = _EXPORTED.sub("", key[:-_HASH].lower())
    if coco := _COCO.fullmatch(stem):
        stem = coco[1]
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem


def pictures_by_key(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return the column `picture` for an index without it, (N,), from its keys. Each frame counts as a picture."""
    hashes = (_hashed(picture_name(key.decode("ascii", "replace"))) for key in keys.tolist())
    return np.fromiter(hashes, np.uint64, len(keys))


def _file(path: str) -> str:
    return path.partition("#")[0]


def _hashed(name: str) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") or 1  # 0 means unknown
