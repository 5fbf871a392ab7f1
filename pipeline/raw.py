"""A raw sample: what a source hands over, before any of the four formats is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RawInput:
    """One unit of raw data that becomes one sample or one line of the ledger."""

    path: str
    """Relative to the source's root, with forward slashes."""
    bytes: int


@dataclass(frozen=True)
class RawFrame:
    name: str
    """As the source calls it."""
    picture: NDArray[np.uint8]
    """(H, W, 3) RGB, 0..255, at the original size."""
    masks: NDArray[np.bool_]
    """(N, H, W), one an object, in the order of the sample's objects."""


@dataclass(frozen=True)
class RawObject:
    id: str
    texts: tuple[str, ...] = ()
    """As they stand in the source."""


@dataclass(frozen=True)
class RawSample:
    path: str
    """Of the raw file, relative to the source's root, with forward slashes."""
    dataset_type: str
    frames: tuple[RawFrame, ...]
    objects: tuple[RawObject, ...]
    notes: Mapping[str, int] = field(default_factory=dict)
    """What the reader counted on the way and a user should know of."""
