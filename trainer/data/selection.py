"""The objects that `data.where` chooses of each set, and how much of what an objective needs a sample keeps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import says_something
from shards.table import open_table, read_batches, table_path
from shards.table_list import LIST, OBJECTS
from shards.where import Chosen, choose
from trainer.data.decoding import Need

if TYPE_CHECKING:
    import pyarrow as pa

Where = str | Mapping[str, str] | None
"""A condition for the objects of all sets, or one for those of each source; None: all objects."""
_READ: dict[Need, tuple[str, ...]] = {"regions": ("cells",), "texts": ("cells", "texts"), "letters": ("texts",)}
"""Columns of the table that tell what an object has."""
_SURROGATE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
"""Half of a surrogate pair as the table writes it."""
_SETS = 1024


class Selection:
    """The chosen objects of a set. Two selections are equal where they are one object.

    Args:
        shards: the set, with its table.
        chosen: its chosen objects.
    """

    def __init__(self, shards: ShardSet, chosen: Chosen) -> None:
        self.chosen = chosen
        self.samples: NDArray[np.bool_] = chosen.counts > 0
        """(N,): whether an object of the sample is chosen."""
        self._shards = shards
        self._counts: dict[Need, NDArray[np.int64]] = {}

    def of(self, position: int) -> list[int]:
        """Return the numbers of the chosen objects of a sample, ascending."""
        return self.chosen.of(position)

    def counts(self, need: Need) -> NDArray[np.int64]:
        """Return what the index's column of this name would be if the samples had their chosen objects alone: (N,).

        The letters of expressions, captions, records and turns all count.
        """
        if need not in self._counts:
            self._counts[need] = self._count(need)
        return self._counts[need]

    def _count(self, need: Need) -> NDArray[np.int64]:
        index = self._shards.index
        counts = np.zeros(len(index), np.int64)
        if need == "letters":
            if need not in (index.dtype.names or ()):  # of an older release
                return self.chosen.counts.astype(np.int64)
            counts += index[need] * self.samples
        at = 0
        path = table_path(self._shards.folder)
        for batch in read_batches(open_table(self._shards), path, ["position", *_READ[need]]):
            chosen = self.chosen.objects[at : at + len(batch)]
            at += len(batch)
            positions = batch.column("position").to_numpy(zero_copy_only=False)
            if need == "letters":
                lost = _sums(batch.column("texts"), _letters(batch.column("texts").flatten())) * ~chosen
                np.subtract.at(counts, positions, lost * self.samples[positions])
                continue
            able = chosen & (_sums(batch.column("cells"), batch.column("cells").flatten().to_numpy() > 0) > 0)
            if need == "texts":
                able &= _sums(batch.column("texts"), _letters(batch.column("texts").flatten()) > 0) > 0
            np.add.at(counts, positions[able], 1)
        return counts

    def usable(self, need: Need | None) -> NDArray[np.bool_]:
        """Return whether the chosen objects of each sample have what is needed: (N,)."""
        return self.samples & (self.counts(need) > 0) if need else self.samples

    @property
    def described(self) -> str:
        """What tells this choice from any other of the set."""
        digest = hashlib.sha256(np.packbits(self.chosen.objects).tobytes()).hexdigest()
        return f"{int(self.chosen.counts.sum())} of {len(self.chosen.objects)} objects, choice {digest[:12]}"

    def __str__(self) -> str:
        without = int((np.diff(self.chosen.starts) == 0).sum())
        samples = f", {without:,} samples without objects too" if without else ""
        return f"{self._shards.folder}: {self.chosen}{samples}"


@dataclass(frozen=True)
class _Question:
    """A condition over the table of a set in the state in which it is."""

    folder: Path
    state: tuple[object, ...]
    condition: str
    shards: ShardSet = field(compare=False)


@lru_cache(_SETS)
def _answer(question: _Question) -> Selection:
    return Selection(question.shards, choose(question.shards, question.condition, may_be_none=True))


def select(shards: ShardSet, where: Where) -> Selection | None:
    """Return the objects of a set that `where` chooses; None where it is taken whole.

    A set is taken whole where it has no objects, and where `where` does not name its source. Each process evaluates
    the condition by itself, once for all loaders. Memory holds a byte per object and at most 40 per sample.

    Raises:
        UserError: see `shards.where.choose`.
    """
    condition = where if isinstance(where, str) or where is None else where.get(shards.manifest.source)
    if condition is None or not shards.manifest.objects:
        return None
    files = [path.stat() for name in (LIST, OBJECTS) if (path := shards.table_file(name)).exists()]
    state = shards.manifest.checksum, *((file.st_mtime_ns, file.st_size) for file in files)
    return _answer(_Question(shards.folder, state, condition, shards))


def lines_of(sets: Sequence[ShardSet], selections: Sequence[Selection | None], where: Where) -> Iterator[str]:
    """Yield a line per set that a user should know of: what is chosen, or that it is taken whole."""
    for shards, selection in zip(sets, selections, strict=True):
        if selection is not None:
            yield str(selection)
        elif isinstance(where, str) or shards.manifest.source in (where or ()):
            yield f"{shards.folder}: its samples have no objects, so it is taken whole, whatever data.where says"


def check_sources(where: Where, sources: set[str]) -> None:
    """Raise `UserError` where a condition is for a source of which there are no shards."""
    if not isinstance(where, str) and (unknown := sorted({*(where or ())} - sources)):
        wanted = ", ".join(sorted(sources))
        raise UserError("no shards of this source", where="data.where", met=", ".join(unknown), wanted=wanted)


def _sums(lists: pa.ListArray, values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the sum of each row's values: (rows,). `values` are those of all rows, one after another."""
    ends = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    sums: NDArray[np.int64] = totals[ends[1:]] - totals[ends[:-1]]
    return sums


def _letters(texts: pa.StringArray) -> NDArray[np.int64]:
    """Return the characters of each text; 0 for one that says nothing, see `shards.sample.letters_of`."""
    import pyarrow.compute as pc

    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    says = pc.match_substring_regex(texts, "[0-9A-Za-z]").to_numpy(zero_copy_only=False)
    escaped = pc.match_substring(texts, "\\ud").to_numpy(zero_copy_only=False)
    for number in np.flatnonzero(~says | escaped).tolist():  # all that arrow does not know as Python does
        text = _SURROGATE.sub("\ud800", texts[number].as_py())
        lengths[number] = len(text) * says_something(text)
    return lengths
