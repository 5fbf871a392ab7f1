"""Chooses the samples that are held out of training, for training, evaluation and doctor alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.groups import Group, pictures_by_key
from shards.manifest import read_index
from shards.program import command
from shards.reader import ShardSet
from trainer.data.choice import UInt64, hash64

Mask = NDArray[np.bool_]

_COMMON = 3
"""Files of one set that share a picture's name are one picture only if they are fewer than this: many sets use names
such as image.jpg or 00000.jpg in each folder."""
_OLD = "its index says nothing of files, folders and pictures, as those of older releases"


def _write_again() -> str:
    return f"{command('recode')} writes it with them"


def held_out_parts(sets: Sequence[ShardSet], share: float, by: Group) -> list[Mask]:
    """Whether each sample is held out: (N,) bool per set.

    A group (a sample, a file, a folder, a picture or video) is held out if the hash of its name lies below `share`. So
    adding data moves no group, and a group that two sets share is on one side in both. Except by sample, also:

    - A set of which `share` is at least one sample, but none is chosen, gives its group with the lowest hash. That
      group is then held out of all sets.
    - A picture's name that three files of a set have, and a folder or video that is more than half of its set, are no
      group: their samples are grouped by file.

    Args:
        sets: all sets of the training, whichever of them an objective reads.
        share: share of the samples, 0 to 1.
        by: kind of group that stays on one side.

    Raises:
        UserError: by folder, for a set of an older release, whose index lacks folders.
    """
    if by == "sample":
        return [_below(shards.index["key"], share) for shards in sets]
    groups = [_divided(shards, _groups(shards, by)) for shards in sets]
    parts = [_below(names, share) for names in groups]
    due = [
        _lowest(names)
        for names, part in zip(groups, parts, strict=True)
        if not part.any() and round(share * len(names)) >= 1
    ]
    lowest = np.concatenate([np.empty(0, np.uint64), *due])
    return [part | np.isin(names, lowest) for names, part in zip(groups, parts, strict=True)]


@dataclass(frozen=True)
class Twins:
    """Pictures and videos, by name, that are both trained on and held out."""

    groups: int
    """Number of such pictures and videos."""
    trained: int
    """Number of their samples that are trained on."""
    held_out: int
    """Number of their samples that are held out."""

    def __str__(self) -> str:
        what = "picture or video stands" if self.groups == 1 else "pictures or videos stand"
        samples = f"{self.trained:,} samples are trained on, {self.held_out:,} held out"
        return f"{self.groups:,} {what} on both sides of the held-out part: of them {samples}"


def find_twins(sets: Sequence[ShardSet], parts: Sequence[Mask]) -> Twins | None:
    """Find pictures on both sides of `parts`, which `held_out_parts` returned; None if there are none."""
    names = np.concatenate([_groups(shards, "picture") for shards in sets])
    held = np.concatenate(parts)
    both = np.intersect1d(names[held], names[~held])
    if not len(both):
        return None
    twin = np.isin(names, both)
    return Twins(len(both), int((twin & ~held).sum()), int((twin & held).sum()))


def holdout_notes(
    sets: Sequence[ShardSet], share: float, by: Group, sources: Collection[str] | None = None
) -> list[str]:
    """Return what a user should know of the held-out part, one line per note.

    Args:
        sets, share, by: as for `held_out_parts`.
        sources: the sources that are read; None: all.
    """
    if not share:
        return []
    parts = held_out_parts(sets, share, by)
    read = [n for n, shards in enumerate(sets) if sources is None or shards.manifest.source in sources]
    sets = [sets[n] for n in read]
    parts = [parts[n] for n in read]
    old = [str(shards.folder) for shards in sets if by != "sample" and not _knows_groups(shards)]
    notes = [f"{folder}: {_OLD}: pairs of one folder may stand on both sides; {_write_again()}" for folder in old]
    if sets and (twins := find_twins(sets, parts)):
        do = "data.holdout_by=picture keeps them together"
        if by == "picture":
            do = "each is more than half of its set, so its files were divided; more data or data.holdout_by=folder"
        notes.append(f"{twins}; {do}")
    return notes


def _below(names: NDArray[Any], share: float) -> Mask:
    """Whether the hash of each name lies below the share. Names are keys (bytes) or uint64."""
    words = np.ascontiguousarray(names).view("<u8").reshape(len(names), names.dtype.itemsize // 8)
    return _hashes(words).astype(np.float64) < share * 2.0**64


def _hashes(words: UInt64) -> UInt64:
    total = np.zeros(len(words), np.uint64)
    for column in words.T:
        total = hash64(total ^ column, salt=0)
    return total


def _knows_groups(shards: ShardSet) -> bool:
    return "picture" in (shards.index.dtype.names or ())


def pictures_of(shards: ShardSet) -> UInt64:
    """Hash of the name of the picture or video that each sample shows, the same in every set: (N,) uint64."""
    return _groups(shards, "picture")


def _groups(shards: ShardSet, by: Group) -> UInt64:
    """The group of each sample, by file, folder or picture: (N,) uint64."""
    if not _knows_groups(shards):
        if by == "folder":
            where = str(shards.folder)
            raise UserError("cannot be held out by folder", where=where, met=_OLD, do=_write_again())
        return _names_of_keys(shards.folder, shards.manifest.index_sha256)
    index = shards.index
    column = index[by].astype(np.uint64)
    if by == "picture":
        common = _common(column, index["file"]) & (column != index["folder"])
        column[common] = index["file"][common]
    unknown = np.flatnonzero(column == 0)
    column[unknown] = pictures_by_key(index["key"][unknown])
    return column


def _common(pictures: UInt64, files: UInt64) -> Mask:
    """Whether the name of each sample's picture is used by at least `_COMMON` files: (N,) bool."""
    pairs = hash64(pictures ^ hash64(files, 1), 0)
    _, first = np.unique(pairs, return_index=True)
    names, counts = np.unique(pictures[first], return_counts=True)
    return np.isin(pictures, names[counts >= _COMMON])


def _divided(shards: ShardSet, names: UInt64) -> UInt64:
    """Groups in which one that is more than half of the set is divided by file, or by key where files are unknown."""
    values, counts = np.unique(names, return_counts=True)
    large = np.isin(names, values[2 * counts > len(names)])
    if not large.any() or len(names) < 2:
        return names
    words = np.ascontiguousarray(shards.index["key"][large]).view("<u8").reshape(int(large.sum()), -1)
    divided = names.copy()
    divided[large] = shards.index["file"][large] if _knows_groups(shards) else _hashes(words)
    return divided


def _lowest(names: UInt64) -> UInt64:
    """The group with the lowest hash among those of at most half of the set: (1,) uint64, or (0,) if there is none."""
    values, counts = np.unique(names, return_counts=True)
    values = values[2 * counts <= len(names)]
    return values[np.argsort(_hashes(values[:, None]))[:1]]


@lru_cache(maxsize=16)
def _names_of_keys(folder: Path, digest: str) -> UInt64:
    """Names of the pictures of a set of an older release. Cached by the index's SHA-256, `digest`."""
    return pictures_by_key(read_index(folder)["key"])
