"""Texts of objects from columns that were joined to a set, in place of those that its source gives, or beside them."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.program import command
from shards.reader import ShardSet
from shards.sample import says_something, usable_texts
from shards.table import open_table, read_batches, table_path
from shards.where import Chosen, JoinedTable, joined_tables

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = "source"
"""Stands for the texts that the source gives."""
_TYPES = ("string", "list<string>")
_SURROGATE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
"""Half of a surrogate pair as a table writes it."""


class ObjectTexts:
    """The texts of the objects of one sample.

    Args:
        columns: by number of the object, those of each column in order; None for those of the source.
    """

    def __init__(self, columns: Sequence[Mapping[int, list[str]] | None]) -> None:
        self._columns = columns
        self.with_source = any(column is None for column in columns)
        """Whether the source's texts are among them."""

    def of(self, number: int, item: dict[str, Any]) -> list[str]:
        """Return the texts of object `number`, which the sample's JSON has as `item`, that say something."""
        return [text for column in self._columns for text in self._texts(column, number, item)]

    def joined(self, number: int) -> list[str]:
        """Return those of them that the source does not give."""
        return [text for column in self._columns if column is not None for text in column.get(number, ())]

    @staticmethod
    def _texts(column: Mapping[int, list[str]] | None, number: int, item: dict[str, Any]) -> list[str]:
        return usable_texts(item) if column is None else column.get(number, [])


class TextColumns:
    """The columns of a set that its objects' texts are taken from. Memory holds the texts of the chosen objects.

    Args:
        shards: the set.
        names: "source" and TABLE.COLUMN, in order.
        chosen: the objects that count; None: all.

    Raises:
        UserError: no such table or column, one that holds no texts, or a damaged table.
    """

    def __init__(self, shards: ShardSet, names: Sequence[str], chosen: Chosen | None) -> None:
        self.names = names
        self.with_source = SOURCE in names
        tables = joined_tables(shards)
        self._chosen = chosen
        self._starts = _starts(shards) if chosen is None else np.concatenate([[0], np.cumsum(chosen.counts)])
        self.letters: NDArray[np.int64] = np.zeros(shards.manifest.objects, np.int64)
        """(O,): characters of each chosen object's texts that the source does not give; see `count_letters`."""
        self._columns: list[_Column | None] = []
        tables_used = set()
        for name in names:
            if name == SOURCE:
                self._columns.append(None)
                continue
            table, column = _found(shards, tables, name)
            self._columns.append(_Column(table, column, chosen, self.letters))
            tables_used.add(f"{table.path.name} {table.sha256[:12]}")
        self.described = f"texts {', '.join(names)} of {', '.join(sorted(tables_used))}"
        """Text that differs for any other texts of the set."""

    def of(self, position: int) -> ObjectTexts:
        """Return the texts of the chosen objects of a sample."""
        begin, end = self._starts[position : position + 2].tolist()
        numbers = range(end - begin) if self._chosen is None else self._chosen.of(position)
        columns = [
            None if column is None else dict(zip(numbers, column.rows(begin, end), strict=True))
            for column in self._columns
        ]
        return ObjectTexts(columns)


class _Column:
    """The texts of a column for the chosen objects, and the number of their letters, which are added to `letters`."""

    def __init__(self, table: JoinedTable, name: str, chosen: Chosen | None, letters: NDArray[np.int64]) -> None:
        import pyarrow as pa

        self._chunks: list[pa.Array] = []
        self._begins: list[int] = []
        kept = 0
        at = 0
        for batch in read_batches(table.open(), table.path, [name]):
            values = batch.column(name)
            rows = slice(at, at + len(values))
            at += len(values)
            if chosen is None:
                letters[rows] += _letters_of_rows(values)
            else:
                values = values.filter(pa.array(chosen.objects[rows]))
                letters[np.flatnonzero(chosen.objects[rows]) + rows.start] += _letters_of_rows(values)
            self._chunks.append(values)
            self._begins.append(kept)
            kept += len(values)

    def rows(self, begin: int, end: int) -> Iterator[list[str]]:
        """Yield the texts that say something of each of these rows."""
        chunk = bisect_right(self._begins, begin) - 1
        while begin < end:
            first = self._begins[chunk]
            some = self._chunks[chunk].slice(begin - first, end - begin).to_pylist()
            for value in some:
                yield [*filter(says_something, [value] if isinstance(value, str) else value or ())]
            begin += len(some)
            chunk += 1


def _letters_of_rows(values: pa.Array) -> NDArray[np.int64]:
    """Return the letters of each row of texts, or of lists of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(values.type):
        filled = pc.fill_null(values, pa.scalar([], values.type))
        return sums(filled, count_letters(filled.flatten()))
    return count_letters(values)


def _found(shards: ShardSet, tables: Mapping[str, JoinedTable], name: str) -> tuple[JoinedTable, str]:
    """Return the table that TABLE.COLUMN names, and the column. Raises `UserError` where it holds no texts."""
    table, _, column = name.partition(".")
    where = f"texts of {shards.folder}"
    if table not in tables:
        do = f"join it with {command(f'join {shards.folder} FILE --as {table}')}"
        raise UserError("no such table was joined", where=where, met=name, wanted=" or ".join(tables), do=do)
    kinds = tables[table].columns
    texts = [one for one, kind in kinds.items() if kind in _TYPES]
    if column not in kinds:
        near = difflib.get_close_matches(column, texts, 1, 0.0)
        raise UserError("no such column", where=where, met=name, wanted=f"{table}.{near[0]}" if near else "texts")
    if column not in texts:
        raise UserError(
            "a column without texts", where=where, met=f"{name}: {kinds[column]}", wanted=" or ".join(_TYPES)
        )
    return tables[table], column


def _starts(shards: ShardSet) -> NDArray[np.int64]:
    """Return (N + 1,): the objects of sample i are the rows from starts[i] up to starts[i + 1] of the table."""
    counts = np.zeros(len(shards), np.int64)
    for batch in read_batches(open_table(shards), table_path(shards.folder), ["position"]):
        positions = batch.column("position").to_numpy(zero_copy_only=False)
        first = int(positions[0])
        found = np.bincount(positions - first)
        counts[first : first + len(found)] += found
    return np.concatenate([[0], np.cumsum(counts)])


def sums(lists: pa.ListArray, values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the sum of each row's values: (rows,). `values` are those of all rows, one after another."""
    ends = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    found: NDArray[np.int64] = totals[ends[1:]] - totals[ends[:-1]]
    return found


def count_letters(texts: pa.StringArray) -> NDArray[np.int64]:
    """Return the characters of each text; 0 for one that says nothing, see `shards.sample.letters_of`, and for null."""
    import pyarrow.compute as pc

    filled = pc.fill_null(texts, "")
    lengths = pc.utf8_length(filled).to_numpy(zero_copy_only=False).astype(np.int64)
    says = pc.match_substring_regex(filled, "[0-9A-Za-z]").to_numpy(zero_copy_only=False)
    escaped = pc.match_substring(filled, "\\ud").to_numpy(zero_copy_only=False)
    for number in np.flatnonzero(~says | escaped).tolist():  # all that arrow does not know as Python does
        text = _SURROGATE.sub("\ud800", filled[number].as_py())
        lengths[number] = len(text) * says_something(text)
    return lengths
