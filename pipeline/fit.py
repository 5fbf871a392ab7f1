"""Whether a mask fits its picture: of one size, or off by a few pixels where the user allows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pipeline.raw import RawSample
from shards.errors import BadInput

OFF = "masks of another size than their picture, within --mask-slack"
_OFFERED = 8  # pixels: what is off by more was hardly rounded
Size = tuple[int, int]


def size_difference(mask: Size, picture: Size) -> int:
    """The pixels by which the sizes (H, W) differ, of the side that differs more."""
    return max(abs(a - b) for a, b in zip(mask, picture, strict=True))


def advice(off: int) -> str:
    """The option that takes a mask that is off by so many pixels; nothing where it is another picture's."""
    return f"--mask-slack {off} takes masks that are off by so many pixels" if off <= _OFFERED else ""


def check_size(mask: Size, picture: Size, slack: int) -> None:
    """Raise `BadInput` where a mask (H, W) is off by more than `slack` pixels from its picture (H, W)."""
    off = size_difference(mask, picture)
    if off > slack:
        raise BadInput(
            "mask and picture differ in size",
            met=f"{mask[0]} x {mask[1]}",
            wanted=f"{picture[0]} x {picture[1]}",
            do=advice(off),
        )


def note_size_differences(raw: RawSample) -> RawSample:
    """The sample, with a note that counts the masks whose size is not their picture's."""
    sizes = [((frame.picture.height, frame.picture.width), mask.shape) for frame in raw.frames for mask in frame.masks]
    off = sum(picture != mask for picture, mask in sizes)
    return replace(raw, notes=Counter(raw.notes) + Counter({OFF: off}))
