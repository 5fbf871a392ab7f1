"""The objects that `data.where` chooses of each set, their texts, and how many of what an objective needs they have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.reader import ShardSet
from shards.table import open_table, read_batches, table_path
from shards.table_list import LIST, OBJECTS
from shards.where import Chosen, choose
from trainer.data.decoding import Need
from trainer.data.object_texts import SOURCE, ObjectTexts, TextColumns, count_letters, sums

Where = str | Mapping[str, str] | None
"""A condition for the objects of all sets, or one for those of each source; None: all objects."""
Texts = Sequence[str] | Mapping[str, Sequence[str]]
"""Names of the texts that objects have, "source" and TABLE.COLUMN, or those of each source."""
OF_SOURCE = (SOURCE,)
"""The texts that the source gives, alone."""
_SETS = 1024
_Value = TypeVar("_Value")


class Selection:
    """The chosen objects of a set, and their texts. Two selections are equal where they are one object.

    Args:
        shards: the set, with its table.
        chosen: its chosen objects; None: all.
        texts: where their texts are; None: in the samples' JSON.
    """

    def __init__(self, shards: ShardSet, chosen: Chosen | None, texts: TextColumns | None) -> None:
        self.chosen = chosen
        self.samples: NDArray[np.bool_] = np.ones(len(shards), np.bool_) if chosen is None else chosen.counts > 0
        """(N,): whether an object of the sample is chosen, or none has to be."""
        self._texts = texts
        self._shards = shards
        self._counts: dict[Need, NDArray[np.int64]] = {}
        self._mute = 0 if texts is None else self._count_mute(texts)

    def of(self, position: int) -> list[int] | None:
        """Return the numbers of the chosen objects of a sample, ascending; None: all."""
        return None if self.chosen is None else self.chosen.of(position)

    def texts_of(self, position: int) -> ObjectTexts | None:
        """Return the texts of the chosen objects of a sample; None: those in its JSON."""
        return None if self._texts is None else self._texts.of(position)

    def counts(self, need: Need) -> NDArray[np.int64]:
        """Return what the index's column of this name would be if the samples had these objects and texts alone: (N,).

        The letters of expressions, captions, records and turns all count.
        """
        if need not in self._counts:
            self._counts[need] = self._count(need)
        return self._counts[need]

    def _count(self, need: Need) -> NDArray[np.int64]:
        index = self._shards.index
        if need == "letters":
            if need not in (index.dtype.names or ()):  # of an older release
                return self.samples.astype(np.int64)
            counts = index[need] * self.samples.astype(np.int64)
        elif need == "regions" and self.chosen is None:
            return index[need].astype(np.int64)
        else:
            counts = np.zeros(len(index), np.int64)
        columns = ["position", *(["cells"] if need != "letters" else []), *(["texts"] if need != "regions" else [])]
        for batch, rows in self._rows(columns):
            positions = batch.column("position").to_numpy(zero_copy_only=False)
            chosen = self._is_chosen(rows)
            if need == "letters":
                left = self._letters(batch, rows) * chosen
                own = sums(batch.column("texts"), count_letters(batch.column("texts").flatten()))
                np.add.at(counts, positions, (left - own) * self.samples[positions])
                continue
            able = chosen & (sums(batch.column("cells"), batch.column("cells").flatten().to_numpy() > 0) > 0)
            if need == "texts":
                able &= self._letters(batch, rows) > 0
            np.add.at(counts, positions[able], 1)
        return counts

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[Any, slice]]:
        """Yield the rows of the table of objects, some at a time, and which they are."""
        at = 0
        for batch in read_batches(open_table(self._shards), table_path(self._shards.folder), columns):
            yield batch, slice(at, at + len(batch))
            at += len(batch)

    def _is_chosen(self, rows: slice) -> NDArray[np.bool_]:
        return np.ones(rows.stop - rows.start, np.bool_) if self.chosen is None else self.chosen.objects[rows]

    def _letters(self, batch: Any, rows: slice) -> NDArray[np.int64]:
        """Return the letters of the texts that each object of a batch has: (rows,)."""
        letters = np.zeros(len(batch), np.int64)
        if self._texts is None or self._texts.with_source:
            letters += sums(batch.column("texts"), count_letters(batch.column("texts").flatten()))
        return letters if self._texts is None else letters + self._texts.letters[rows]

    def _count_mute(self, texts: TextColumns) -> int:
        """Count the chosen objects without a text."""
        if not texts.with_source:
            return int((self._is_chosen(slice(0, len(texts.letters))) & (texts.letters == 0)).sum())
        rows = self._rows(["texts"])
        return sum(int((self._is_chosen(some) & (self._letters(batch, some) == 0)).sum()) for batch, some in rows)

    def usable(self, need: Need | None) -> NDArray[np.bool_]:
        """Return whether the chosen objects of each sample have what is needed: (N,)."""
        return self.samples & (self.counts(need) > 0) if need else self.samples

    @property
    def described(self) -> str:
        """Text that differs for any other choice or texts of the set."""
        parts = [] if self._texts is None else [self._texts.described]
        if self.chosen is not None:
            digest = hashlib.sha256(np.packbits(self.chosen.objects).tobytes()).hexdigest()
            objects = f"{int(self.chosen.counts.sum())} of {len(self.chosen.objects)} objects"
            parts.insert(0, f"{objects}, choice {digest[:12]}")
        return ", ".join(parts)

    def lines(self) -> Iterator[str]:
        """Yield what a user should know of it."""
        if self.chosen is not None:
            without = int((np.diff(self.chosen.starts) == 0).sum())
            samples = f", {without:,} samples without objects too" if without else ""
            yield f"{self._shards.folder}: {self.chosen}{samples}"
        if self._texts is not None:
            count = self._shards.manifest.objects if self.chosen is None else int(self.chosen.counts.sum())
            objects = "objects" if self.chosen is None else "chosen objects"
            names = ", ".join(self._texts.names)
            yield f"{self._shards.folder}: texts {names}: {self._mute:,} of {count:,} {objects} have none"


@dataclass(frozen=True)
class _Question:
    """A condition over the tables of a set in the state in which it is, and the names of its texts."""

    folder: Path
    state: tuple[object, ...]
    condition: str | None
    texts: tuple[str, ...]
    shards: ShardSet = field(compare=False)


@lru_cache(_SETS)
def _answer(question: _Question) -> Selection:
    shards = question.shards
    chosen = None if question.condition is None else choose(shards, question.condition, may_be_none=True)
    texts = None if question.texts == OF_SOURCE else TextColumns(shards, question.texts, chosen)
    return Selection(shards, chosen, texts)


def select(shards: ShardSet, where: Where, texts: Texts = OF_SOURCE) -> Selection | None:
    """Return the objects of a set that `where` chooses, with `texts`; None where it is taken as it is.

    A set is taken as it is where it has no objects, and where neither names its source. Each process evaluates the
    condition by itself, once for all loaders. Memory holds a byte per object, at most 40 per sample, and of texts that
    the source does not give 8 bytes per object and the texts.

    Raises:
        UserError: see `shards.where.choose` and `TextColumns`.
    """
    source = shards.manifest.source
    condition = _of_source(where, source, None)
    names = tuple(_of_source(texts, source, OF_SOURCE))
    if not shards.manifest.objects or (condition is None and names == OF_SOURCE):
        return None
    files = [path.stat() for name in (LIST, OBJECTS) if (path := shards.table_file(name)).exists()]
    state = shards.manifest.checksum, *((file.st_mtime_ns, file.st_size) for file in files)
    return _answer(_Question(shards.folder, state, condition, names, shards))


def _of_source(given: _Value | Mapping[str, _Value], source: str, otherwise: _Value) -> _Value:
    return given.get(source, otherwise) if isinstance(given, Mapping) else given


def lines_of(sets: Sequence[ShardSet], selections: Sequence[Selection | None], where: Where) -> Iterator[str]:
    """Yield lines for each set that a user should know of: what is chosen, or that it is taken whole, and its texts."""
    for shards, selection in zip(sets, selections, strict=True):
        if selection is not None:
            yield from selection.lines()
        elif isinstance(where, str) or shards.manifest.source in (where or ()):
            yield f"{shards.folder}: its samples have no objects, so it is taken whole, whatever data.where says"


def check_sources(key: str, given: Where | Texts, sources: set[str]) -> None:
    """Raise `UserError` where `given`, the value of a key, has something for a source of which there are no shards."""
    if isinstance(given, Mapping) and (unknown := sorted({*given} - sources)):
        wanted = ", ".join(sorted(sources))
        raise UserError("no shards of this source", where=key, met=", ".join(unknown), wanted=wanted)
