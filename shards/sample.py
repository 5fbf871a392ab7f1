"""A sample as it goes into a shard: the four formats of its frames and a JSON."""

from __future__ import annotations

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
