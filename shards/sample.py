"""A sample before it is written to a shard: the four formats of its frames, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.codec import Bool, UInt8


@dataclass(frozen=True)
class FrameTensors:
    """The four formats of one frame with N objects. Each is made from the original picture or mask in one step."""

    pixel_values: UInt8
    """(3, 448, 448) uint8 RGB, before normalisation. The reader returns (v / 255 - mean) / std as float32."""
    g_pixel_values: UInt8
    """(3, 1024, 1024) uint8 RGB."""
    prompt_masks: Bool
    """(N, 16, 16) bool: the ViT's tokens that cover the region."""
    masks: Bool
    """(N, 1024, 1024) bool."""

    def __post_init__(self) -> None:
        if self.pixel_values.dtype != np.uint8 or self.g_pixel_values.dtype != np.uint8:
            raise TypeError("pictures are stored as uint8")


@dataclass(frozen=True)
class Sample:
    """One sample as `shards.archive` writes it: a key, a JSON, and four tensors per frame."""

    key: str
    meta: dict[str, Any]
    """The sample's JSON, as `docs/FORMAT.md` lists it, without `crc32`, which the writer adds."""
    frames: tuple[FrameTensors, ...]


def usable_texts(item: dict[str, Any]) -> list[str]:
    """Return the texts of an object of a sample's JSON that contain a letter or a digit."""
    texts = item.get("texts")
    if not isinstance(texts, list):
        return []
    return [text for text in texts if isinstance(text, str) and any(map(str.isalnum, text))]


def usable_objects(objects: list[dict[str, Any]], prompts: Sequence[Bool]) -> tuple[int, int]:
    """Count the objects that a trainer can ask for: (with a prompt cell and a usable text, with a prompt cell).

    Args:
        objects: the N objects of the sample's JSON.
        prompts: (N, 16, 16) bool for each frame; a cell in one frame is enough.
    """
    visible = np.any([cells.any(axis=(1, 2)) for cells in prompts], axis=0)
    with_text = [bool(usable_texts(item)) for item in objects]
    return sum(bool(a and b) for a, b in zip(visible, with_text, strict=True)), int(visible.sum())
