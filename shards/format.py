"""Names, shapes and dtypes of the shard format. `docs/FORMAT.md` is the specification."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np

from shards.errors import BadShard
from shards.recipe import Recipe

FORMAT = "sa2va-shards"
VERSION = 2
"""Version of the format of sets whose samples all have objects."""
VERSION_WITHOUT_OBJECTS = 3
"""Version of sets that hold a sample without objects. Releases that do not know such samples refuse it."""
READABLE = (1, VERSION, VERSION_WITHOUT_OBJECTS)
"""Versions that are read. In version 1 the extensions `.up` and `.bits` were followed by `.zst`."""
MANIFEST = "manifest.json"
INDEX = "index.npy"
LEDGER = "ledger.jsonl"
WORK = ".work"
"""Folder inside an unfinished set: its plan, notes on finished shards, and files in the making."""
META_EXTENSION = "json"

FieldName = Literal["pixel_values", "g_pixel_values", "prompt_masks", "masks"]
# In the order of a frame's members in the tar.
FIELDS: tuple[FieldName, ...] = get_args(FieldName)
PICTURES = FIELDS[:2]
LAYOUTS = (FIELDS, PICTURES, FIELDS[:1])
"""Fields that every frame of a sample may have. Without objects there are only pictures: both, or `pixel_values`."""
Codec = Literal["gradient", "zstd", "raw", "jpeg"]
"""Codec of the pictures of a set. Masks and prompts have one codec each."""
DEFAULT_CODEC: Codec = "gradient"
UNSTATED_CODEC: Codec = "zstd"
"""Codec of a manifest or plan that names none."""
CODECS: tuple[Codec, ...] = get_args(Codec)
LOSSY: tuple[Codec, ...] = ("jpeg",)
# Extensions name the codec (see `shards.codec`). Libraries that decode or unpack members by extension do not know our
# own and leave the bytes alone.
_OF_PICTURES: dict[Codec, str] = {"gradient": "grad", "zstd": "up", "raw": "npy", "jpeg": "jpg"}
_OF_MASKS = {"prompt_masks": "npy", "masks": "bits"}
_OWN = ("up", "bits")
_FIELD = re.compile(r"(pixel_values|g_pixel_values|prompt_masks|masks)([1-9][0-9]?)?")
MAX_OBJECTS = 1 << 12
"""Largest number of objects per sample. The fullest pictures of SA-1B hold some hundred."""
KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Field(NamedTuple):
    """One of the four formats of one frame."""

    name: FieldName
    frame: int | None
    """Counted from 1; None in a sample of a single frame."""

    @classmethod
    def parse(cls, text: str) -> Field:
        """Return the field called `text`, such as "masks2"; raises `BadShard`."""
        match = _FIELD.fullmatch(text)
        if match is None:
            raise BadShard("unknown field", met=text, wanted=" | ".join(FIELDS) + ", then the frame's number")
        return cls(match[1], int(match[2]) if match[2] else None)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.name if self.frame is None else f"{self.name}{self.frame}"

    @property
    def is_picture(self) -> bool:
        """Whether the field is a picture, not a mask or a prompt."""
        return self.name in PICTURES

    def extension(self, codec: Codec, version: int = VERSION) -> str:
        """Return the extension of the member in a set of this codec and version of the format."""
        extension = _OF_MASKS.get(self.name) or _OF_PICTURES[codec]
        return f"{extension}.zst" if version == 1 and extension in _OWN else extension

    def shape(self, recipe: Recipe, objects: int) -> tuple[int, ...]:
        """Return the shape of the array that the reader returns."""
        return {
            "pixel_values": (3, recipe.vision_size, recipe.vision_size),
            "g_pixel_values": (3, recipe.sam_size, recipe.sam_size),
            "prompt_masks": (objects, recipe.grid, recipe.grid),
            "masks": (objects, recipe.sam_size, recipe.sam_size),
        }[self.name]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of the array that the reader returns."""
        kinds = {"pixel_values": np.float32, "g_pixel_values": np.uint8, "prompt_masks": np.bool_, "masks": np.bool_}
        return np.dtype(kinds[self.name])


def frame_fields(frames: int, layout: Sequence[FieldName] = FIELDS) -> list[Field]:
    """Return the fields of a sample of `frames` frames, in the tar's order; `layout` are those of each frame."""
    numbers: list[int | None] = [None] if frames == 1 else [*range(1, frames + 1)]
    return [Field(name, number) for number in numbers for name in layout]


def version_of(objects: Iterable[int]) -> int:
    """Return the version of the format of a set whose samples have these numbers of objects."""
    return VERSION if all(objects) else VERSION_WITHOUT_OBJECTS


def key_for(path: PurePosixPath | str) -> str:
    """Return the key for a raw file: unique, stable, without dots and slashes. `path` is relative to the source's root.

    It is the readable stem of the file and a hash of the whole path, which tells equal stems apart.
    """
    path = PurePosixPath(path)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", path.name.split(".")[0])[:40].strip("_")
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{readable or 'sample'}-{digest}"
