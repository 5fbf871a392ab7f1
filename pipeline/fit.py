"""Whether a mask has its picture's size, or differs by a few pixels where the user allows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pipeline.raw import RawSample
from shards.errors import BadInput

OFF = "masks of another size than their picture, within --mask-slack"
_MOST_ADVISED = 8  # pixels: rounding hardly makes a larger difference
Size = tuple[int, int]


def size_difference(mask: Size, picture: Size) -> int:
    """Return by how many pixels two sizes (H, W) differ, in the side that differs more."""
    return max(abs(a - b) for a, b in zip(mask, picture, strict=True))


def advice(off: int) -> str:
    """Return which option accepts a mask that is off by so many pixels; "" where it is another picture's mask."""
    return f"--mask-slack {off} takes masks that are off by so many pixels" if off <= _MOST_ADVISED else ""


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
    """Return the sample with a note that counts the masks whose size is not their picture's."""
    sizes = [((frame.picture.height, frame.picture.width), mask.shape) for frame in raw.frames for mask in frame.masks]
    off = sum(picture != mask for picture, mask in sizes)
    return replace(raw, notes=Counter(raw.notes) + Counter({OFF: off}))
