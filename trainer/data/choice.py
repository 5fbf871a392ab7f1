"""Which objects of a sample a step takes, and which two of its frames: seeded, among those that can be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]
_MASK = 0xFFFFFFFFFFFFFFFF


def mix(values: UInt64, salt: int) -> UInt64:
    """A hash of each value, evenly spread over 64 bits (splitmix64's finaliser); the same everywhere."""
    z = values + np.uint64(salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & _MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(able: Sequence[int], most: int, salt: int) -> list[int]:
    """At most `most` of `able`, all different, in the order in which they are drawn."""
    z = salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & _MASK  # `mix` of 0: an array of one takes ten times as long
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    first = able[(z ^ (z >> 31)) * len(able) >> 64]
    if most == 1:
        return [first]
    rest = np.array([n for n in able if n != first], np.uint64)
    return [first, *rest[np.argsort(mix(rest, salt))][: most - 1].tolist()]


def choose(visible: NDArray[np.bool_], able: Sequence[int], most: int, salt: int) -> tuple[list[int], tuple[int, int]]:
    """At most `most` objects, rising, and the two frames (from 0) that show them all; one frame twice if need be.

    One object is drawn; then, of more than two frames that show it, two; then further objects that both frames show.

    Args:
        visible: (F, N), whether each frame shows each object.
        able: the objects to choose among, each visible in a frame.
        salt: of the draw.
    """
    order = draw(able, 1 if most == 1 else len(able), salt)
    showing = np.flatnonzero(visible[:, order[0]])
    if len(visible) > 2:
        showing = showing[np.argsort(mix(showing.astype(np.uint64), salt + 1))]
    first, second = int(showing[0]), int(showing[min(1, len(showing) - 1)])
    return sorted([n for n in order if visible[first, n] and visible[second, n]][:most]), (first, second)
