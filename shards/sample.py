"""A sample as it goes into a shard: the four formats of its frames and a JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.codec import Bool, UInt8


@dataclass(frozen=True)
class FrameTensors:
    """The four formats of one frame with N objects, each made from the original picture or mask."""

    pixel_values: UInt8
    """(3, 448, 448) RGB, 0..255, before normalisation: the reader returns (v / 255 - mean) / std as float32."""
    g_pixel_values: UInt8
    """(3, 1024, 1024) RGB, 0..255."""
    prompt_masks: Bool
    """(N, 16, 16): which of the ViT's tokens stand for the region."""
    masks: Bool
    """(N, 1024, 1024)."""

    def __post_init__(self) -> None:
        if self.pixel_values.dtype != np.uint8 or self.g_pixel_values.dtype != np.uint8:
            raise TypeError("pictures are stored as uint8")


@dataclass(frozen=True)
class Sample:
    """What `shards.archive` writes: one key, one JSON, four tensors a frame."""

    key: str
    meta: dict[str, Any]
    """The sample's JSON, as `docs/FORMAT.md` lists it, without `crc32`, which the writer adds."""
    frames: tuple[FrameTensors, ...]


def texts_of(item: dict[str, Any]) -> list[str]:
    """The texts of an object, as the sample's JSON has it, that say something: those with a letter or a digit."""
    texts = item.get("texts")
    if not isinstance(texts, list):
        return []
    return [text for text in texts if isinstance(text, str) and any(map(str.isalnum, text))]


def usable_objects(objects: list[dict[str, Any]], prompts: Sequence[Bool]) -> tuple[int, int]:
    """How many objects have a prompt cell in a frame and a text that says something; how many have the cell.

    Args:
        objects: N, of the sample's JSON.
        prompts: (N, 16, 16) of each frame.
    """
    visible = np.any([cells.any(axis=(1, 2)) for cells in prompts], axis=0)
    told = [bool(texts_of(item)) for item in objects]
    return sum(bool(a and b) for a, b in zip(visible, told, strict=True)), int(visible.sum())
