"""Seeded choice of the objects, texts and frames that a step takes of a sample.

Objects are taken without replacement: those of a sample have a seeded order, and each visit to the sample continues
where the previous one stopped. So every object is taken before any is taken twice, and what a visit takes depends only
on seed, sample and the number of the visit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards import compiled

UInt64 = NDArray[np.uint64]
_MASK = 0xFFFFFFFFFFFFFFFF
_MULTIPLIER = 6364136223846793005  # Knuth's generator for 64 bits
_INCREMENT = 1442695040888963407
_MANY = 32  # numbers from which on numpy is faster


class Choice(NamedTuple):
    """Objects and frames that a visit takes of a sample."""

    objects: list[int]
    """Numbers of the objects, ascending."""
    turns: list[int]
    """How often each object was taken before."""
    frames: tuple[int, int]
    """Two frames, from 0, that show all objects; the same frame twice if no two do."""


def hash64(values: UInt64, salt: int) -> UInt64:
    """Hash each value to 64 evenly spread bits (splitmix64's finaliser); the same on every machine."""
    z = values + np.uint64(salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & _MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def salt_of(*names: object) -> int:
    """Hash `names`, such as the seed and the key of a sample, to an integer of 64 bits."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def salts_after(*names: object) -> Callable[[str], int]:
    """Return a function that computes `salt_of(*names, name)` for a last name, in half the time."""
    begin = hashlib.blake2b("".join(f"{name}/" for name in names).encode(), digest_size=8)

    def salt(name: str) -> int:
        whole = begin.copy()
        whole.update(name.encode())
        return int.from_bytes(whole.digest(), "little")

    return salt


def shuffled(numbers: Sequence[int], salt: int) -> list[int]:
    """`numbers` in an order drawn with the seed `salt`, all orders equally likely (Fisher and Yates)."""
    if compiled.is_compiled():
        return compiled.shuffled(numbers, salt)
    order = [*numbers]
    if len(order) > _MANY:
        multipliers, increments, counts = _steps(len(order))
        states = multipliers * np.uint64(salt & _MASK) + increments
        places = ((states >> np.uint64(32)) * counts >> np.uint64(32)).tolist()
        for last, at in zip(range(len(order) - 1, 0, -1), places, strict=True):
            order[last], order[at] = order[at], order[last]
        return order
    state = salt & _MASK
    for last in range(len(order) - 1, 0, -1):
        state = state * _MULTIPLIER + _INCREMENT & _MASK
        at = (state >> 32) * (last + 1) >> 32
        order[last], order[at] = order[at], order[last]
    return order


@lru_cache(maxsize=1024)
def _steps(count: int) -> tuple[UInt64, UInt64, UInt64]:
    """Return what `shuffled` needs for `count` numbers, each (count - 1,): (m, i, n).

    After k steps the generator's state is m[k - 1] * seed + i[k - 1]; step k chooses among n[k - 1] numbers.
    """
    multiplier = 1
    increment = 0
    states = []
    for _ in range(count - 1):
        multiplier = multiplier * _MULTIPLIER & _MASK
        increment = increment * _MULTIPLIER + _INCREMENT & _MASK
        states.append((multiplier, increment))
    multipliers, increments = np.array(states, np.uint64).T.copy()
    return multipliers, increments, np.arange(count, 1, -1).astype(np.uint64)


def take_in_turn(order: Sequence[int], most: int, visit: int) -> list[tuple[int, int]]:
    """Take at most `most` of `order`, cyclically, continuing after the previous visit.

    In ceil(n / most) visits each of n objects is taken at least once, and none twice before that.

    Returns:
        Each object, ascending, with the number of times that it was taken before.
    """
    if most == 1:
        turn, place = divmod(visit, len(order))
        return [(order[place], turn)]
    count = min(most, len(order))
    places = range(visit * count, (visit + 1) * count)
    return sorted((order[place % len(order)], place // len(order)) for place in places)


def choose(visible: NDArray[np.bool_], able: Sequence[int], most: int, salt: int, visit: int) -> Choice:
    """Choose at most `most` objects in turn, and two frames that show all of them.

    If the objects do not all share two frames (or their only one), those that do form fixed groups of at most `most`,
    and a visit takes one group: each object is taken once in as many visits as there are groups.

    Args:
        visible: (F, N), whether each frame shows each object.
        able: numbers of the objects to choose from, each visible in a frame.
        most: most objects to take.
        salt: seed of the sample's order.
        visit: how often the sample was visited before.
    """
    order = shuffled(able, salt)
    if most == 1 or _share_frames(visible[:, order]):
        taken = take_in_turn(order, most, visit)
    else:
        groups = _groups(visible, order, most)
        turn, which = divmod(visit, len(groups))
        taken = [(number, turn) for number in sorted(groups[which])]
    objects = [number for number, _ in taken]
    shown = visible[:, objects[0]] if len(objects) == 1 else visible[:, objects].all(axis=1)
    showing = np.flatnonzero(shown)
    if len(visible) > 2:
        showing = showing[np.argsort(hash64(showing.astype(np.uint64), salt + visit + 1))]
    frames = int(showing[0]), int(showing[min(1, len(showing) - 1)])
    return Choice(objects, [turn for _, turn in taken], frames)


def _share_frames(visible: NDArray[np.bool_]) -> bool:
    """Whether two frames show all objects, or the only frame that shows any shows all; `visible` is (F, N)."""
    return bool(visible.all(axis=1).sum() >= min(2, visible.sum(axis=0).max()))


def _groups(visible: NDArray[np.bool_], order: Sequence[int], most: int) -> list[list[int]]:
    """Divide `order` into groups of at most `most` objects that share two frames, or their single frame."""
    packed = np.packbits(visible, axis=0).T
    frames = {n: int.from_bytes(packed[n].tobytes(), "big") for n in order}  # one bit per frame
    groups: list[list[int]] = []
    unfilled: list[tuple[int, list[int]]] = []  # frames that a group's objects share, and the group
    for number in sorted(order, key=lambda n: -min(2, frames[n].bit_count())):
        least = min(2, frames[number].bit_count())
        for at, (shared, group) in enumerate(unfilled):
            if (shared & frames[number]).bit_count() >= least and min(2, shared.bit_count()) == least:
                group.append(number)
                unfilled[at] = (shared & frames[number], group)
                if len(group) == most:
                    del unfilled[at]
                break
        else:
            groups.append([number])
            unfilled.append((frames[number], groups[-1]))
    return groups
