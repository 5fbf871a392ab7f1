"""A raw sample: what a source returns, before any of the four formats is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.cropped import Mask


@dataclass(frozen=True, slots=True)  # there are millions of them
class RawInput:
    """The unit of raw data that becomes one sample or one line of the ledger."""

    path: str
    """Relative to the source's root, with forward slashes."""
    bytes: int
    """Size of the raw data."""


@dataclass(frozen=True)
class RawFrame:
    """A picture with the masks of all objects of its sample."""

    name: str
    """Name of the frame in the source."""
    picture: Image.Image
    """Mode RGB, at the original size, H x W."""
    masks: Sequence[Mask]
    """One (H', W') bool mask per object, in the order of the sample's objects; empty where the object is not in this
    frame. H' and W' are the picture's, except in datasets whose masks have another size than their picture."""


@dataclass(frozen=True)
class RawObject:
    """An object of a sample."""

    id: str
    """Unique in its sample."""
    texts: tuple[str, ...] = ()
    """Texts that describe the object, as they are in the source."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other JSON values of the source: category, references, scores, ..."""


@dataclass(frozen=True)
class RawSample:
    """Decoded input, as a source returns it."""

    path: str
    """Path of the raw file, relative to the source's root, with forward slashes."""
    dataset_type: str
    """Name of the source."""
    frames: tuple[RawFrame, ...]
    """() in a sample of text alone."""
    objects: tuple[RawObject, ...]
    """() where there is nothing to segment."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other JSON values of the source for the whole sample: captions, turns, split, ..."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts for the user, such as of masks that were thresholded."""
    segmentable: bool = True
    """False: no `g_pixel_values` are made. Without effect on a sample that has objects."""
