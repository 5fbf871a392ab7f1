"""A sample before it is written to a shard: the four formats of its frames, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.codec import Bool, PackedMasks, UInt8
from shards.errors import BadShard
from shards.format import FIELDS, PICTURES, Field, FieldName, frame_fields


@dataclass(frozen=True)
class FrameTensors:
    """The four formats of one frame with N objects. Each is made from the original picture or mask in one step."""

    pixel_values: UInt8
    """(3, 448, 448) uint8 RGB, before normalisation. The reader returns (v / 255 - mean) / std as float32."""
    g_pixel_values: UInt8 | None
    """(3, 1024, 1024) uint8 RGB. None where nothing is to be segmented: only in samples without objects."""
    prompt_masks: Bool
    """(N, 16, 16) bool: the ViT's tokens that cover the region."""
    masks: Bool | PackedMasks
    """(N, 1024, 1024) bool."""
    mask_pixels: Sequence[int] | None = None
    """(N,) number of pixels set in each of the masks; None where they were not counted."""

    def __post_init__(self) -> None:
        pictures = (self.pixel_values, self.g_pixel_values)
        if any(picture is not None and picture.dtype != np.uint8 for picture in pictures):
            raise TypeError("pictures are stored as uint8")


@dataclass(frozen=True)
class Sample:
    """One sample as `shards.archive` writes it: a key, a JSON, and four tensors per frame."""

    key: str
    meta: dict[str, Any]
    """The sample's JSON, as `docs/FORMAT.md` lists it, without `crc32`, which the writer adds."""
    frames: tuple[FrameTensors, ...]
    """() in a sample of text alone."""

    @property
    def layout(self) -> tuple[FieldName, ...]:
        """Fields that are stored of each frame. Without objects there are no masks and no prompts.

        Raises:
            BadShard: only some frames have `g_pixel_values`, or it is missing beside objects.
        """
        missing = [frame.g_pixel_values is None for frame in self.frames]
        if any(missing) and (self.meta["objects"] or not all(missing)):
            met = f"{missing.count(False)} of {len(missing)} frames"
            raise BadShard("frames with g_pixel_values", met=met, wanted="all, or none where there are no objects")
        return FIELDS if self.meta["objects"] else PICTURES[:1] if any(missing) else PICTURES

    @property
    def fields(self) -> list[Field]:
        """Fields that are stored, in the tar's order. Raises `BadShard` as `layout`."""
        return frame_fields(len(self.frames), self.layout)


def usable_texts(item: dict[str, Any]) -> list[str]:
    """Return the texts of an object of a sample's JSON that contain a letter or a digit."""
    texts = item.get("texts")
    if not isinstance(texts, list):
        return []
    return [*filter(says_something, texts)]


def letters_of(meta: dict[str, Any]) -> int:
    """Count the characters of all texts of a sample's JSON that conversations can be made of.

    These are the texts of objects, expressions and captions, the questions, answers and descriptions of records, and
    those of turns. A text without a letter or a digit counts 0. So does one of another type: a source may store
    anything under these names.
    """
    texts: list[Any] = [text for item in meta["objects"] for text in usable_texts(item)]
    for name in ("expressions", "captions"):
        texts += [item.get("text") for item in dicts(meta.get(name))]
    for record in dicts(meta.get("records")):
        texts += [turn.get("value") for turn in dicts(record.get("conversations"))]
        described = record.get("description", record.get("descriptions"))
        texts += described if isinstance(described, list) else []
    for turn in dicts(meta.get("turns")):
        texts += [turn.get("question"), turn.get("answer")]
    return sum(len(text) for text in texts if says_something(text))


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list; none where `value` is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def says_something(text: Any) -> bool:
    """Whether `text` is a text with a letter or a digit."""
    return isinstance(text, str) and any(map(str.isalnum, text))


def usable_objects(objects: list[dict[str, Any]], prompts: Sequence[Bool]) -> tuple[int, int]:
    """Count the objects that a trainer can ask for: (with a prompt cell and a usable text, with a prompt cell).

    Args:
        objects: the N objects of the sample's JSON.
        prompts: (N, 16, 16) bool for each frame; a cell in one frame is enough.
    """
    if not objects:
        return 0, 0
    visible = np.any([cells.any(axis=(1, 2)) for cells in prompts], axis=0)
    with_text = [bool(usable_texts(item)) for item in objects]
    return sum(bool(a and b) for a, b in zip(visible, with_text, strict=True)), int(visible.sum())
