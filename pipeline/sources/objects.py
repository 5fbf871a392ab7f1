"""Make a sample of the objects whose masks can be used, and name the others with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pipeline.cropped import Bool, Mask
from pipeline.faults import EMPTY, Fault, left_out, unusable
from pipeline.raw import RawFrame, RawObject, RawSample
from shards.errors import BadInput, DroppedInput

NO_OBJECT = "no annotated object"
TWICE = "objects listed twice, taken once"
ONE_ID = "objects that share an id with another of their sample"
ReadMask = Callable[[], Bool | Mask]


@dataclass(frozen=True)
class Candidate:
    """An object of the annotations. `masks` has one function per frame, which reads its mask, (H, W)."""

    object: RawObject
    masks: Sequence[ReadMask]


def sample_of(
    path: str,
    kind: str,
    pictures: Sequence[tuple[str, Image.Image]],
    candidates: Iterable[Candidate],
    more: dict[str, object] | None = None,
    no_target: bool = False,
) -> RawSample:
    """Return a sample of all candidates whose masks can be read and are not empty in every frame.

    The others are counted by reason, and named in the sample's JSON under `left_out`. Of objects that share an id the
    second becomes `ID-2`, and so on. Objects that are equal in all parts are taken once.

    Args:
        path: the input's path.
        kind: the source's name.
        pictures: name and picture of each frame.
        candidates: in the order of the annotations.
        more: other entries of the sample's JSON.
        no_target: whether all texts of the sample are known to have no object. Its pictures are then a sample without
            objects.

    Raises:
        DroppedInput: there is no candidate, and not `no_target`.
        BadInput: none of the objects can be used.
    """
    kept: list[RawObject] = []
    masks: list[list[Mask]] = [[] for _ in pictures]
    faults: list[Fault] = []
    ids = _UniqueIds()
    for candidate in candidates:
        described = ids.unique(candidate.object)
        try:
            read = [Mask.from_array(read_mask()) for read_mask in candidate.masks]
            if not any(mask.any() for mask in read):
                raise BadInput(
                    EMPTY,
                    met="0 pixels of " + ", ".join(f"{mask.shape[0]} x {mask.shape[1]}" for mask in read[:3]),
                    wanted="an object",
                )
        except BadInput as error:
            faults.append((described.id, error))
            continue
        if ids.is_repeated(candidate.object, read):
            continue
        kept.append(described)
        for frame, mask in zip(masks, read, strict=True):
            frame.append(mask)
    if not kept and (faults or not no_target):
        if not faults:
            raise DroppedInput(NO_OBJECT, met="a picture alone", wanted="at least one object")
        raise unusable("object", faults)
    frames = tuple(RawFrame(name, picture, tuple(m)) for (name, picture), m in zip(pictures, masks, strict=True))
    notes = Counter(f"objects left out: {error.what}" for _, error in faults) + ids.notes
    extra = {**(more or {}), **left_out(faults)}
    return RawSample(path, kind, frames, tuple(kept), extra, notes)


class _UniqueIds:
    """Gives each object of a sample an id of its own."""

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()
        self._used: set[str] = set()
        self._shared: dict[str, list[tuple[RawObject, list[Mask]]]] = {}

    def unique(self, described: RawObject) -> RawObject:
        """Return the object with an id that none before it has."""
        name = described.id
        number = 1
        while name in self._used:
            number += 1
            name = f"{described.id}-{number}"
        self._used.add(name)
        return described if number == 1 else replace(described, id=name)

    def is_repeated(self, described: RawObject, masks: list[Mask]) -> bool:
        """Whether an earlier object has the same id, texts, annotation and masks; counts it, and a shared id."""
        before = self._shared.setdefault(described.id, [])
        repeated = any(described == other and _equal(masks, other_masks) for other, other_masks in before)
        if before:
            self.notes[TWICE if repeated else ONE_ID] += 1
        before.append((described, masks))
        return repeated


def _equal(some: Sequence[Mask], others: Sequence[Mask]) -> bool:
    return all(
        (one.shape, one.top, one.left) == (other.shape, other.top, other.left)
        and np.array_equal(one.pixels, other.pixels)
        for one, other in zip(some, others, strict=True)
    )
