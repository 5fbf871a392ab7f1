"""Phrases of other samples, to ask for what a picture does not show."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from shards.manifest import positions_by_shard
from shards.reader import ShardSet
from trainer.conversations.phrases import phrases_of
from trainer.data.holdout import pictures_of
from trainer.data.order import Entry
from trainer.data.selection import Selection

_SETS = 256
_TRIES = 8
"""Samples that are looked at until one has a phrase."""


class OtherPhrases:
    """Draws phrases of samples in the same tar, which is at hand: a shard from a URL is not fetched for a phrase."""

    def __init__(self) -> None:
        self._neighbours = lru_cache(_SETS)(_neighbours)
        self._pictures = lru_cache(_SETS)(pictures_of)

    def draw(self, entry: Entry, number: int, draws: Random) -> str | None:
        """Draw a phrase of a sample that shows another picture or video than sample `number` does.

        It is on the same side of the held-out part. None where none of a few samples has a phrase.

        Raises:
            BadShard: the other sample cannot be read.
        """
        shards = entry.shards
        pictures = self._pictures(shards)
        neighbours = self._neighbours(shards, entry.selection)[int(shards.index["shard"][number])]
        for _ in range(_TRIES):
            other = int(neighbours[draws.randrange(len(neighbours))])
            if pictures[other] == pictures[number] or entry.is_held_out[other] != entry.is_held_out[number]:
                continue
            if phrases := phrases_of(shards.meta(other), entry.chosen(other), entry.texts(other)):
                return draws.choice(phrases)
        return None


def _neighbours(shards: ShardSet, selection: Selection | None) -> list[NDArray[np.int64]]:
    """Return the positions of the samples of each shard that have a chosen object."""
    by_shard = positions_by_shard(shards.index, len(shards.manifest.shards))
    return by_shard if selection is None else [some[selection.samples[some]] for some in by_shard]
