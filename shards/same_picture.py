"""Is the picture in `pixel_values` the picture in `g_pixel_values`?

Both are reduced to 64 x 64 means of blocks (448 = 64 * 7, 1024 = 64 * 16), where they should be equal but for what the
filters make of detail finer than a block. So every tolerance has a part that grows with the detail inside the blocks.

The constants were measured over 25 photographs and textures and over stripes, chirps and noise of full contrast in
1,700 widths from 2 to 8,000 pixels, with both filters. Photographs differ by 0.05 to 0.6 levels of 255. The worst are
stripes of one to seven pixels, which turn into moire: up to 10.8 levels, and they may even fit better upside down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.codec import UInt8
from shards.recipe import Recipe

Array = NDArray[np.float32]
Change = Callable[[NDArray], NDArray]

_BLOCKS = 64
_CONSTANTS = Recipe().mean, Recipe().std


@dataclass(frozen=True)
class Disagreement:
    """Two formats of one frame that do not agree: one line of a report."""

    field: str
    what: str
    met: str
    wanted: str


# Each is undone by itself, so a picture and what it makes of it differ by D = x - change(x), and the change of one
# format alone turns the sign of its D. Comparing D instead of x leaves out what the filters did to both alike: this
# finds blue for red in a picture that is nearly grey.
_MIRRORS: dict[str, Change] = {
    "BGR for RGB": lambda x: x[::-1],
    "flipped left to right": lambda x: x[:, :, ::-1],
    "flipped top to bottom": lambda x: x[:, ::-1],
    "turned by 180 degrees": lambda x: x[:, ::-1, ::-1],
    "rows and columns exchanged": lambda x: x.transpose(0, 2, 1),
    "flipped along the other diagonal": lambda x: x.transpose(0, 2, 1)[:, ::-1, ::-1],
}
_TURNS: dict[str, Change] = {
    "turned by 90 degrees": lambda x: x.transpose(0, 2, 1)[:, ::-1],
    "turned by 270 degrees": lambda x: x.transpose(0, 2, 1)[:, :, ::-1],
}


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _means(picture: NDArray) -> Array:
    """(3, S, S) -> (3, 64, 64) float32, the mean of each block."""
    side = picture.shape[1] // _BLOCKS
    narrow, wide = (np.uint16, np.uint32) if picture.dtype == np.uint8 else (np.float32, np.float32)
    rows = picture.reshape(3, _BLOCKS, side, -1).sum(axis=2, dtype=narrow)
    return rows.reshape(3, _BLOCKS, _BLOCKS, side).sum(axis=3, dtype=wide) / np.float32(side * side)


def _detail(picture: Array) -> float:
    """The root mean square of (3, S, S) about the means of its blocks."""
    return float(np.sqrt(max(0.0, np.mean(_means(picture * picture) - _means(picture) ** 2, dtype=np.float64))))


class _Frame:
    def __init__(self, pictures: tuple[UInt8, UInt8]) -> None:
        self.pictures = pictures
        self.vision, self.sam = (_means(picture) for picture in pictures)

    def full(self) -> list[Array]:
        return [picture.astype(np.float32) for picture in self.pictures]


def _alike(vision: Array, sam: Array, detail: Callable[[], float]) -> bool:
    """Whether two means of blocks agree. `detail`, which costs, is asked for only where they are not nearly equal."""
    gap, sizes = _rms(vision - sam), (_rms(vision), _rms(sam))
    # Where both are nothing, there is no rounding either.
    rounding = 0.25 * float(np.sqrt(np.mean(np.maximum(abs(vision), abs(sam)) > 0.1)))
    opposite = float(np.mean(vision * sam)) < -0.7 * sizes[0] * sizes[1] and min(sizes) > rounding
    apart = gap > 0.5 * max(sizes) + 0.5
    if not (opposite or apart):
        return True
    inside = detail()
    # Measured: 0.20 where it is 0.25 here, and 0.23 where it is 0.5.
    return not (opposite and min(sizes) > rounding + 0.08 * inside) and gap <= 0.5 * max(sizes) + 0.5 + 0.2 * inside


def _fits(frame: _Frame, change: Change) -> bool:
    def detail() -> float:
        return max(_detail(full - change(full)) for full in frame.full())

    return _alike(frame.vision - change(frame.vision), frame.sam - change(frame.sam), detail)


def _difference(frame: _Frame) -> tuple[float, float]:
    """How far a frame's two pictures are apart, and how far they may be."""

    def detail() -> float:
        return max(_detail(full) for full in frame.full())

    difference, bound = _rms(frame.vision - frame.sam), 1.5
    if difference > bound:
        bound += 0.25 * detail()  # measured: 0.53 + 0.2 * detail
    # A picture of little contrast is near any other such picture: compare what is left without the mean colour.
    vision, sam = (x - x.mean(axis=(1, 2), keepdims=True) for x in (frame.vision, frame.sam))
    if difference <= bound and not _alike(vision, sam, detail):
        return difference, min(bound, 0.5 * max(_rms(vision), _rms(sam)))
    return difference, bound


def _candidates(k: int, frames: Sequence[_Frame], names: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """What `g_pixel_values` of frame k may be instead, and how far it is from that."""
    vision, sam = frames[k].vision, frames[k].sam
    for name, change in (_MIRRORS | _TURNS).items():
        yield name, vision - change(sam)
    for other, frame in enumerate(frames):
        if other != k:
            yield f"the picture of {names[other]}", frame.vision - sam
    blown_up = codec.normalise(frames[k].pictures[0], *_CONSTANTS) * np.float32(255)
    yield "normalised values times 255, clamped", _means(np.clip(blown_up, 0, 255)) - sam


def _hint(k: int, frames: Sequence[_Frame], names: Sequence[str], mirrors: Sequence[str], difference: float) -> str:
    # A mirror that its own test found need not fit much better as a whole: what the filters did dilutes it there.
    distances = {name: _rms(gap) for name, gap in _candidates(k, frames, names)}
    penalised = {name: distance + (0 if name in mirrors else difference / 2) for name, distance in distances.items()}
    best = min(penalised, key=lambda name: penalised[name])
    return f"; it fits as {best} ({distances[best]:.1f})" if penalised[best] < difference else ""


def _frames_agree(one: _Frame, other: _Frame) -> bool:
    """Whether two frames differ from each other in one format as they do in the other."""
    vision, sam = one.vision - other.vision, one.sam - other.sam

    def detail() -> float:
        return max(_detail(x - y) for x, y in zip(one.full(), other.full(), strict=True))

    # Measured: where moire makes one of the two vanish, the other is up to 1.6.
    doubled = (not vision.any() or not sam.any()) and max(_rms(vision), _rms(sam)) > 2.5
    return not doubled and _alike(vision, sam, detail)


def picture_disagreements(pictures: Sequence[tuple[UInt8, UInt8]], names: Sequence[str]) -> list[Disagreement]:
    """Compare the pictures of a sample's frames, and how its frames differ from each other.

    What is wrong in both formats alike cannot be seen here: both BGR, both of another sample.

    Args:
        pictures: for each frame (3, 448, 448), before normalisation, and (3, 1024, 1024), both uint8 RGB.
        names: of the frames' `g_pixel_values` fields.
    """
    frames = [_Frame(pair) for pair in pictures]
    what, found = "not the picture of pixel_values", []
    for k, frame in enumerate(frames):
        difference, bound = _difference(frame)
        # Looked for where the pictures are near each other; else the nearest reading of all is named anyway.
        near = difference <= bound
        mirrors = [name for name, change in _MIRRORS.items() if near and not _fits(frame, change)]
        if mirrors or difference > bound:
            met = f"a difference of {difference:.1f} levels{_hint(k, frames, names, mirrors, difference)}"
            wanted = f"at most {bound:.1f}, and no other reading that fits better"
            found.append(Disagreement(names[k], what, met, wanted))
    if found:
        return found
    # Frames that are nearly alike pass all this when they are exchanged.
    for i, j in combinations(range(len(frames)), 2):
        if not _frames_agree(frames[i], frames[j]):
            vision, sam = frames[i].vision - frames[j].vision, frames[i].sam - frames[j].sam
            for k, other in ((i, j), (j, i)):
                met = f"frames that differ otherwise than in pixel_values; it fits as the picture of {names[other]}"
                wanted = f"differences less than {max(_rms(vision), _rms(sam)) / 2:.1f} levels apart"
                found.append(Disagreement(names[k], what, f"{met} ({_rms(vision - sam):.1f})", wanted))
    return found
