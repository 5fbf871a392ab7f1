"""Which samples of a set are shown, and in which order: a condition over its table, and a column to sort by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from browsing.recent import Recent
from shards.errors import UserError
from shards.extras import extra
from shards.reader import ShardSet

if TYPE_CHECKING:
    import pyarrow as pa

    from shards.where import Chosen

_MOST_BYTES = 512 << 20
"""Largest sum of the bytes of choices, and of orders, that are kept in memory."""
_LIMITS = {"memory_limit": "1GB", "threads": "2", "autoload_known_extensions": "false"}


@dataclass(frozen=True)
class View:
    """Samples of a set in an order."""

    samples: int
    """Number of samples of the set."""
    positions: NDArray[np.uint32] | None
    """(n,) positions of the samples shown, in order; None: all in the set's order."""
    choice: Chosen | None
    """The objects that a condition chooses; None: all."""

    def __len__(self) -> int:
        return self.samples if self.positions is None else len(self.positions)

    def part(self, begin: int, count: int) -> list[int]:
        """Return the positions of at most `count` samples, from place `begin` on."""
        if self.positions is None:
            return list(range(begin, min(begin + count, self.samples)))
        return self.positions[begin : begin + count].tolist()

    def place_of(self, position: int) -> int | None:
        """Return the place of a sample in the view; None where it is not shown."""
        if self.positions is None:
            return position if 0 <= position < self.samples else None
        places = np.flatnonzero(self.positions == position)
        return int(places[0]) if len(places) else None

    def objects_of(self, position: int) -> list[int] | None:
        """Return the positions of a sample's chosen objects; None: all of them."""
        if self.choice is None:
            return None
        chosen = self.choice.of(position)
        whole = int(self.choice.starts[position + 1] - self.choice.starts[position]) == len(chosen)
        return None if whole else chosen


class Views:
    """The views of shard sets; those used last are kept in memory."""

    def __init__(self) -> None:
        self._choices: Recent[Chosen] = Recent(_MOST_BYTES)
        self._orders: Recent[NDArray[np.uint32]] = Recent(_MOST_BYTES)

    def view(self, shards: ShardSet, condition: str, column: str, descending: bool) -> View:
        """Return the samples that have an object which `condition` chooses, sorted by `column`.

        Args:
            condition: "" for all samples, also those without objects.
            column: see `sort`; "" for the set's order.
            descending: begin with the greatest value.

        Raises:
            UserError: as `choose` and `sort`.
        """
        choice = self._choice(shards, condition) if condition else None
        if not column and not descending and choice is None:
            return View(len(shards), None, None)

        def order() -> NDArray[np.uint32]:
            if column:
                return sort(shards, column, descending, choice)
            positions = np.arange(len(shards)) if choice is None else np.flatnonzero(choice.counts)
            return positions[:: -1 if descending else 1].astype(np.uint32)

        key = shards.folder, condition, column, descending
        return View(len(shards), self._orders.get(key, order, lambda found: found.nbytes), choice)

    def _choice(self, shards: ShardSet, condition: str) -> Chosen:
        from shards.where import choose  # here, as all that the first page does not need

        def size(found: Chosen) -> int:
            return found.objects.nbytes + found.starts.nbytes + found.counts.nbytes

        return self._choices.get((shards.folder, condition), lambda: choose(shards, condition, True), size)


def columns_of(shards: ShardSet) -> dict[str, str]:
    """Return the columns of a set's table, and those of joined tables as TABLE.COLUMN, with their types.

    Raises:
        UserError: the set has no table.
    """
    from shards.table import COLUMNS, open_table
    from shards.where import joined_tables

    open_table(shards).close()
    joined = joined_tables(shards).items()
    return COLUMNS | {f"{name}.{column}": kind for name, table in joined for column, kind in table.columns.items()}


def sort(shards: ShardSet, column: str, descending: bool, choice: Chosen | None) -> NDArray[np.uint32]:
    """Return the positions of a set's samples, sorted by a column of its table.

    A sample's value is the least of its objects' values, or the greatest where the order descends; of a list, the
    least or greatest element. Samples without a value come last, equal ones in the set's order. DuckDB sorts, and puts
    what does not fit into its memory into a temporary folder.

    Args:
        column: a name of `columns_of`.
        choice: sort by the chosen objects, and leave out samples without one; None: all samples.

    Raises:
        UserError: there is no such column, the set has no table, or it is damaged.
    """
    with extra("pipeline", where="sort"):
        import duckdb
        import pyarrow as pa
    kinds = columns_of(shards)
    if column not in kinds:
        raise UserError("no such column", where="sort", met=column, wanted=", ".join(kinds))
    best = "max" if descending else "min"
    value = f"{best}(list_{best}(value))" if kinds[column].startswith("list<") else f"{best}(value)"
    begin = 0
    with tempfile.TemporaryDirectory(prefix="sa2va-browse-") as folder:
        config: dict[str, Any] = {**_LIMITS, "temp_directory": folder}
        with duckdb.connect(":memory:", config=config) as connection:
            query = f"SELECT position, {value} AS value FROM rows GROUP BY position"
            made = False
            for batch in _values(shards, column):
                end = begin + len(batch)
                if choice is not None:
                    batch = batch.filter(pa.array(choice.objects[begin:end]))
                connection.register("rows", batch)
                connection.execute(f"INSERT INTO found {query}" if made else f"CREATE TABLE found AS {query}")
                connection.unregister("rows")
                begin, made = end, True
            order = "DESC" if descending else "ASC"
            sorted_rows = connection.execute(
                f"SELECT position FROM found GROUP BY position ORDER BY {best}(value) {order} NULLS LAST, position"
            )
            found = sorted_rows.fetchnumpy()["position"].astype(np.uint32) if made else np.empty(0, np.uint32)
    if choice is not None:
        return found
    rest = np.ones(len(shards), np.bool_)
    rest[found] = False
    return np.concatenate([found, np.flatnonzero(rest).astype(np.uint32)])


def _values(shards: ShardSet, column: str) -> Iterator[pa.RecordBatch]:
    """Yield `position` of the sample and `value` of a column for each object of a set in order, some at a time."""
    import pyarrow as pa

    from shards.table import open_table, read_batches, table_path
    from shards.where import JoinedRows, joined_tables

    table, dot, of_table = column.partition(".")
    own = ["position"] if dot else [*dict.fromkeys(("position", column))]
    joined = JoinedRows(joined_tables(shards)[table], [of_table]) if dot else None
    for batch in read_batches(open_table(shards), table_path(shards.folder), own):
        values = batch.column(column) if joined is None else joined.take(len(batch)).column(0)
        yield pa.record_batch({"position": batch.column("position"), "value": values})


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: "0-4,7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def from_ranges(text: str, most: int) -> list[int]:
    """Return the numbers of a text of `ranges`, each below `most`; raises `UserError` on another text."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not (part.isascii() and first.isdigit() and (last.isdigit() if dash else True) and len(part) <= 20):
            raise UserError("not numbers of objects", met=part[:40], wanted="such as 0-4,7")
        numbers.update(range(int(first), min(int(last or first), most - 1) + 1))
    return sorted(number for number in numbers if number < most)
