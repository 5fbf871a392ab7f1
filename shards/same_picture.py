"""Comparing the picture in `pixel_values` with the picture in `g_pixel_values`, without resizing.

Both are reduced to 64 x 64 means of blocks (448 = 64 * 7, 1024 = 64 * 16). The means are equal except for the filters'
effect on detail finer than a block. So every tolerance has a part that grows with the detail inside the blocks.

The constants were measured on 25 photographs and textures and on stripes, chirps and noise of full contrast in 1,700
widths from 2 to 8,000 pixels, with both filters. Photographs differ by 0.05 to 0.6 levels of 255. The worst are stripes
of one to seven pixels, which turn into moire: up to 10.8 levels, and they may even fit better upside down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.blocks import sum_blocks
from shards.codec import UInt8
from shards.recipe import Recipe

Array = NDArray[np.float32]
Change = Callable[[NDArray], NDArray]

_BLOCKS = 64
_CONSTANTS = Recipe().mean, Recipe().std


@dataclass(frozen=True)
class Disagreement:
    """A field that does not agree with another format of its frame: one line of a report."""

    field: str
    what: str
    met: str
    wanted: str


# Each change is its own inverse: applied to one format alone, it flips the sign of that format's D = x - change(x).
# Comparing D removes what the filters did to both formats, and finds swapped red and blue in a nearly grey picture.
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
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@dataclass(frozen=True)
class Measured:
    """Means of blocks and extreme values of a picture."""

    means: Array
    """(3, 64, 64) float32: of blocks."""
    ends: UInt8
    """(3, 2): the lowest and the highest value of each plane."""


def measure(picture: UInt8) -> Measured:
    """Measure (3, S, S) uint8."""
    side = picture.shape[1] // _BLOCKS
    sums, ends = sum_blocks(picture, _BLOCKS)
    return Measured(sums.astype(np.float32) / np.float32(side * side), ends)


def _means(picture: Array) -> Array:
    """Return the mean of each block: (3, S, S) float32 -> (3, 64, 64)."""
    side = picture.shape[1] // _BLOCKS
    rows = picture.reshape(3, _BLOCKS, side, -1).sum(axis=2, dtype=np.float32)
    means: Array = rows.reshape(3, _BLOCKS, _BLOCKS, side).sum(axis=3, dtype=np.float32) / np.float32(side * side)
    return means


def _detail(picture: Array) -> float:
    """Return the root mean square deviation of (3, S, S) from the means of its blocks."""
    return float(np.sqrt(max(0.0, np.mean(_means(picture * picture) - _means(picture) ** 2, dtype=np.float64))))


class _Frame:
    """The two pictures of one frame, the means of their blocks, and how far these are apart."""

    def __init__(self, pictures: tuple[UInt8, UInt8], measured: tuple[Measured, Measured]) -> None:
        self.pictures = pictures
        self.vision, self.sam = (each.means for each in measured)
        self.difference = _rms(self.vision - self.sam)

    def full(self) -> list[Array]:
        """Return both pictures as float32."""
        return [picture.astype(np.float32) for picture in self.pictures]


def _alike(vision: Array, sam: Array, detail: Callable[[], float]) -> bool:
    """Return whether two arrays of means agree; `detail`, which is slow, is called only where they differ notably."""
    gap = _rms(vision - sam)
    sizes = _rms(vision), _rms(sam)
    # Blocks that are zero in both have no rounding error.
    rounding = 0.25 * float(np.sqrt(np.mean(np.maximum(abs(vision), abs(sam)) > 0.1)))
    opposite = float(np.mean(vision * sam)) < -0.7 * sizes[0] * sizes[1] and min(sizes) > rounding
    apart = gap > 0.5 * max(sizes) + 0.5
    if not (opposite or apart):
        return True
    inside = detail()
    # Measured: 0.20 where it is 0.25 here, and 0.23 where it is 0.5.
    return not (opposite and min(sizes) > rounding + 0.08 * inside) and gap <= 0.5 * max(sizes) + 0.5 + 0.2 * inside


def _is_surely_alike(vision: Array, gap: float) -> bool:
    """Return whether `_alike` holds for `vision` and any other array that is at most `gap` apart (root mean square).

    It saves most of the time of `_alike`. Arrays of opposite signs are further apart than each of them is large.
    """
    size = 0.99 * float(np.sqrt(np.einsum("ijk,ijk->", vision, vision) / vision.size))
    gap = 1.01 * gap + 1e-3  # both with room for rounding
    return size > gap and gap <= 0.5 * size + 0.5


def _fits(frame: _Frame, change: Change) -> bool:
    """Return whether `change` was applied to neither of the two pictures, or to both."""

    def detail() -> float:
        return max(_detail(full - change(full)) for full in frame.full())

    vision = frame.vision - change(frame.vision)
    # A change only moves values: it keeps the distance of the two, and the differences are at most twice as far apart.
    return _is_surely_alike(vision, 2 * frame.difference) or _alike(vision, frame.sam - change(frame.sam), detail)


def _difference(frame: _Frame) -> tuple[float, float]:
    """Return the difference of a frame's two pictures, and its largest allowed value."""

    def detail() -> float:
        return max(_detail(full) for full in frame.full())

    difference = frame.difference
    bound = 1.5
    if difference > bound:
        bound += 0.25 * detail()  # measured: 0.53 + 0.2 * detail
    # Pictures of little contrast are all similar: compare them without their mean colours.
    vision, sam = (x - x.mean(axis=(1, 2), keepdims=True) for x in (frame.vision, frame.sam))
    if difference <= bound and not (_is_surely_alike(vision, difference) or _alike(vision, sam, detail)):
        return difference, min(bound, 0.5 * max(_rms(vision), _rms(sam)))
    return difference, bound


def _candidates(k: int, frames: Sequence[_Frame], names: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Yield what `g_pixel_values` of frame k may be instead, and the difference from that."""
    vision = frames[k].vision
    sam = frames[k].sam
    for name, change in (_MIRRORS | _TURNS).items():
        yield name, vision - change(sam)
    for other, frame in enumerate(frames):
        if other != k:
            yield f"the picture of {names[other]}", frame.vision - sam
    blown_up = codec.normalise(frames[k].pictures[0], *_CONSTANTS) * np.float32(255)
    yield "normalised values times 255, clamped", _means(np.clip(blown_up, 0, 255)) - sam


def _hint(k: int, frames: Sequence[_Frame], names: Sequence[str], mirrors: Sequence[str], difference: float) -> str:
    # A mirror that `_fits` found may fit only slightly better as a whole, because of the filters: it gets no penalty.
    distances = {name: _rms(gap) for name, gap in _candidates(k, frames, names)}
    penalised = {name: distance + (0 if name in mirrors else difference / 2) for name, distance in distances.items()}
    best = min(penalised, key=lambda name: penalised[name])
    return f"; it fits as {best} ({distances[best]:.1f})" if penalised[best] < difference else ""


def _frames_agree(one: _Frame, other: _Frame) -> bool:
    """Return whether two frames differ from each other in one format as they do in the other."""
    vision = one.vision - other.vision
    if _is_surely_alike(vision, one.difference + other.difference):
        return True  # and neither of the two is zero
    sam = one.sam - other.sam

    def detail() -> float:
        return max(_detail(x - y) for x, y in zip(one.full(), other.full(), strict=True))

    # Measured: where moire makes one of the two vanish, the other is up to 1.6.
    doubled = (not vision.any() or not sam.any()) and max(_rms(vision), _rms(sam)) > 2.5
    return not doubled and _alike(vision, sam, detail)


def picture_disagreements(
    pictures: Sequence[tuple[UInt8, UInt8]],
    names: Sequence[str],
    measured: Sequence[tuple[Measured, Measured]] | None = None,
) -> list[Disagreement]:
    """Compare the two pictures of each frame, and how the frames differ from each other; return what disagrees.

    A fault in both formats cannot be found here: both BGR, or both of another sample.

    Args:
        pictures: for each frame (3, 448, 448), before normalisation, and (3, 1024, 1024), both uint8 RGB.
        names: names of the frames' `g_pixel_values` fields.
        measured: what `measure` returns for each picture, where it is at hand.
    """
    known = measured or [(measure(small), measure(large)) for small, large in pictures]
    frames = [_Frame(pair, each) for pair, each in zip(pictures, known, strict=True)]
    what = "not the picture of pixel_values"
    found = []
    for k, frame in enumerate(frames):
        difference, bound = _difference(frame)
        # Only for similar pictures; otherwise the hint names the best fit anyway.
        near = difference <= bound
        mirrors = [name for name, change in _MIRRORS.items() if near and not _fits(frame, change)]
        if mirrors or difference > bound:
            met = f"a difference of {difference:.1f} levels{_hint(k, frames, names, mirrors, difference)}"
            allowed = f"at most {bound:.1f}, and no other reading that fits better"
            found.append(Disagreement(names[k], what, met, allowed))
    if found:
        return found
    # Nearly equal frames that are exchanged pass all these checks.
    for i, j in combinations(range(len(frames)), 2):
        if not _frames_agree(frames[i], frames[j]):
            vision = frames[i].vision - frames[j].vision
            sam = frames[i].sam - frames[j].sam
            for k, other in ((i, j), (j, i)):
                met = (
                    f"frames that differ otherwise than in pixel_values; it fits as the picture of {names[other]} "
                    f"({_rms(vision - sam):.1f})"
                )
                allowed = f"differences less than {max(_rms(vision), _rms(sam)) / 2:.1f} levels apart"
                found.append(Disagreement(names[k], what, met, allowed))
    return found
