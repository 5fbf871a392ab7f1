"""A raw sample: what a source hands over, before any of the four formats is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.cropped import Mask


@dataclass(frozen=True, slots=True)  # there are millions of them
class RawInput:
    """One unit of raw data that becomes one sample or one line of the ledger."""

    path: str
    """Relative to the source's root, with forward slashes."""
    bytes: int


@dataclass(frozen=True)
class RawFrame:
    name: str
    """As the source calls it."""
    picture: Image.Image
    """Of mode RGB, at the original size, H x W."""
    masks: Sequence[Mask]
    """(H', W') each, one an object, in the order of the sample's objects. H' and W' are the picture's but for datasets
    that draw masks at a size of their own; empty where the object is not in this frame."""


@dataclass(frozen=True)
class RawObject:
    id: str
    texts: tuple[str, ...] = ()
    """As they stand in the source."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says of it, as JSON: category, references, scores, ..."""


@dataclass(frozen=True)
class RawSample:
    path: str
    """Of the raw file, relative to the source's root, with forward slashes."""
    dataset_type: str
    frames: tuple[RawFrame, ...]
    objects: tuple[RawObject, ...]
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says of the whole, as JSON: captions, conversations, split, ..."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What the reader counted on the way and a user should know of."""
