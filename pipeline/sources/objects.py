"""Objects whose masks can be used, and a word on each that cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.cropped import Bool, Mask
from pipeline.raw import RawFrame, RawObject, RawSample
from shards.errors import BadInput, DroppedInput

EMPTY = "empty mask"
NO_OBJECT = "no annotated object"
ReadMask = Callable[[], Bool]


@dataclass(frozen=True)
class Candidate:
    """An object that annotations speak of; its masks, one a frame, are read when they are needed."""

    object: RawObject
    masks: Sequence[ReadMask]


def sample_of(
    path: str,
    kind: str,
    pictures: Sequence[tuple[str, Image.Image]],
    candidates: Iterable[Candidate],
    more: dict[str, object] | None = None,
) -> RawSample:
    """A sample of all candidates whose masks are sound and not empty in every frame.

    The others are counted by reason, and named in the sample's JSON under `left_out`.

    Args:
        path: of the input.
        kind: the source's name.
        pictures: name and picture of each frame.
        candidates: in the order of the annotations.
        more: for the sample's JSON.

    Raises:
        DroppedInput: annotations speak of no object at all.
        BadInput: none of the objects can be used.
    """
    kept: list[RawObject] = []
    masks: list[list[Mask]] = [[] for _ in pictures]
    left_out: list[dict[str, str]] = []
    for candidate in candidates:
        try:
            own = [Mask.of(read()) for read in candidate.masks]
            if not any(mask.any() for mask in own):
                raise BadInput(EMPTY, met="0 pixels", wanted="an object")
        except BadInput as error:
            left_out.append({"id": candidate.object.id, "reason": error.what, "detail": error.detail})
            continue
        kept.append(candidate.object)
        for frame, mask in zip(masks, own, strict=True):
            frame.append(mask)
    if not kept:
        if not left_out:
            raise DroppedInput(NO_OBJECT, met="a picture alone", wanted="at least one object")
        met = ", ".join(f"{item['id']}: {item['reason']}" for item in left_out[:3])
        raise BadInput("no object that can be used", met=f"{len(left_out)} objects, {met}", wanted="at least one")
    frames = tuple(RawFrame(name, picture, tuple(own)) for (name, picture), own in zip(pictures, masks, strict=True))
    notes = Counter(f"objects left out: {item['reason']}" for item in left_out)
    extra = {**(more or {}), **({"left_out": left_out} if left_out else {})}
    return RawSample(path, kind, frames, tuple(kept), extra, notes)
