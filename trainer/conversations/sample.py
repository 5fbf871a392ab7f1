"""The texts of a sample, and which frames show its objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.sample import usable_texts
from trainer.data.object_texts import ObjectTexts


@dataclass(frozen=True)
class SampleTexts:
    """A sample of F frames and N objects without its pictures and masks."""

    key: str
    source: str
    """Name of the source, as in the sample's JSON."""
    meta: Mapping[str, Any]
    """The sample's JSON."""
    cells: NDArray[np.integer[Any]]
    """(F, N): number of prompt cells of each object in each frame. N is 0 without objects, F without pictures."""
    chosen: Sequence[int] | None = None
    """Numbers of the objects that are asked for; None: all. The others are only seen."""
    object_texts: ObjectTexts | None = None
    """Their texts; None: those in `meta`."""

    @property
    def frames(self) -> int:
        return len(self.cells)

    @property
    def objects(self) -> Sequence[int]:
        """Numbers of the objects that are asked for, ascending."""
        return range(len(self.meta["objects"])) if self.chosen is None else self.chosen

    def texts(self, number: int) -> list[str]:
        """Return the texts of an object that say something."""
        item = self.meta["objects"][number]
        return usable_texts(item) if self.object_texts is None else self.object_texts.of(number, item)

    def joined_texts(self, number: int) -> list[str]:
        """Return those texts of an object that the source does not give."""
        return [] if self.object_texts is None else self.object_texts.joined(number)

    def is_sentence(self, number: int, text: str) -> bool:
        """Return whether the source says that a text of an object is a sentence, not a name."""
        item = self.meta["objects"][number]
        return item.get("is_sentence") is True and text in usable_texts(item)

    def all_chosen(self, numbers: Iterable[int]) -> bool:
        """Return whether all objects with these numbers are asked for."""
        return self.chosen is None or {*numbers} <= {*self.chosen}

    def numbers(self, ids: Any) -> tuple[int, ...] | None:
        """Return the numbers of the objects with these ids, from 0; None where one is not among the objects.

        None too where `ids` is no list of texts: a source may store anything.
        """
        known = self._number_of
        if not isinstance(ids, list) or not all(isinstance(name, str) and name in known for name in ids):
            return None
        return tuple(dict.fromkeys(known[name] for name in ids))

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {item["id"]: number for number, item in enumerate(self.meta["objects"])}
