"""Choosing objects of a shard set by an SQL condition over its tables, evaluated by DuckDB.

A condition is one expression over the columns of one row: those of `objects.parquet`, and those of joined tables. It
reads nothing else: the connection has no files, network, extensions or settings. Subqueries, aggregates and functions
that depend on more than their arguments are refused.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import BadShard, UserError
from shards.extras import extra
from shards.join import NAME, columns_of, joined_path, open_joined
from shards.reader import ShardSet
from shards.table import COLUMNS, open_table, read_batches, table_path
from shards.table_list import LIST, read_tables

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

_DOCUMENT = "see docs/TABLE.md"
_LOCKED = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # otherwise a name may be a variable of this program
    "memory_limit": "1GB",
    "temp_directory": "",
    "threads": "1",  # rows stay in order
}
_SECONDS = 60.0
"""Longest time for the rows of one batch, of which there are at most 65,536."""
_CLASSES = {
    *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
    *("LAMBDA", "OPERATOR", "TYPE"),
}
"""Classes of DuckDB's expressions that a condition may have."""
_REFUSED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a function over several rows",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "DEFAULT": "DEFAULT",
}
_SQL_TYPES = {
    **{"string": "VARCHAR", "double": "DOUBLE", "float": "FLOAT", "bool": "BOOLEAN"},
    **{"int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT"},
    **{"uint8": "UTINYINT", "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT"},
}
"""DuckDB's types of values, by the names that tables have for them."""
_MACROS = re.compile(r"(list|array)_.*|if|nullif|split_part")
"""Names of DuckDB's macros that depend on their arguments alone."""
_LONG = {
    *("array_resize", "bar", "format", "generate_series", "list_reduce", "list_resize", "lpad", "printf", "range"),
    *("array_reduce", "reduce", "repeat", "rpad"),
}
"""Functions that make texts and lists of any length: DuckDB does not count these as memory."""


@dataclass(frozen=True)
class Chosen:
    """The objects of a set that a condition chooses."""

    condition: str
    objects: NDArray[np.bool_]
    """(O,), the objects of all samples in the set's order."""
    starts: NDArray[np.int64]
    """(N + 1,): the objects of sample i are those from starts[i] up to starts[i + 1]."""
    counts: NDArray[np.int32]
    """(N,), the number of chosen objects of each sample."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by file name of the joined tables whose columns the condition names. The choice follows from these, the
    condition and the set's manifest."""

    def of(self, position: int) -> list[int]:
        """Return the positions of the chosen objects of a sample, ascending."""
        return np.flatnonzero(self.objects[self.starts[position] : self.starts[position + 1]]).tolist()

    def __str__(self) -> str:
        samples = int((self.counts > 0).sum())
        return (
            f"where {self.condition}: {int(self.counts.sum()):,} of {len(self.objects):,} objects, in {samples:,} of "
            f"{len(self.starts) - 1:,} samples; the others are left out"
        )


@dataclass(frozen=True)
class JoinedTable:
    """A joined table that a condition may name."""

    path: Path
    sha256: str
    columns: Mapping[str, str]
    """Type by name, as `shards.table.COLUMNS` has them."""
    open: Callable[[], pq.ParquetFile]


def joined_tables(shards: ShardSet) -> dict[str, JoinedTable]:
    """Return the joined tables of a set by name; opening one that its list of tables does not name is refused.

    Raises:
        UserError: as `shards.table_list.read_tables`.
    """
    tables = read_tables(shards.table_file(LIST).parent, shards.manifest)
    known = {file: (info.sha256, info.joined.columns) for file, info in tables.items() if info.joined is not None}
    for path in sorted(shards.folder.glob("*.parquet")):
        if path.name not in tables and NAME.fullmatch(path.stem) and (columns := columns_of(path)) is not None:
            known[path.name] = ("", columns)  # of an earlier state of the set
    found = {}
    for file, (digest, columns) in known.items():
        name = file.removesuffix(".parquet")
        opened = partial(open_joined, shards, name, tables)
        found[name] = JoinedTable(joined_path(shards.folder, name), digest, columns, opened)
    return found


def choose(shards: ShardSet, condition: str, may_be_none: bool = False) -> Chosen:
    """Return the objects of a set for which a condition is true; null counts as false.

    Memory holds a byte per object, some per sample, and one batch of rows.

    Args:
        may_be_none: where no object is chosen, that is no error.

    Raises:
        UserError: the condition is none, a column does not exist, evaluating takes too much memory or time, no object
            is chosen, or the set has no table of its own, or a joined table that is named is missing or damaged.
    """
    path = table_path(shards.folder)
    chosen = choose_rows(open_table(shards), path, len(shards), condition, joined_tables(shards))
    if not may_be_none and not chosen.counts.any():
        raise UserError("no object is chosen", where=str(path), met=f"where {condition}", do=_DOCUMENT)
    return chosen


def choose_rows(
    file: pq.ParquetFile,
    path: Path,
    samples: int,
    condition: str,
    joined: Mapping[str, JoinedTable] = MappingProxyType({}),
) -> Chosen:
    """Return the rows of a table of so many samples for which a condition is true; see `choose`.

    Args:
        path: of the table.
        joined: tables with as many rows, by name.
    """
    objects = np.empty(file.metadata.num_rows, np.bool_)
    starts = np.zeros(samples + 1, np.int64)
    counts = np.zeros(samples, np.int32)
    at = 0
    last = 0
    with _evaluator(condition, {name: table.columns for name, table in joined.items()}) as (evaluate, named):
        others = {name: JoinedRows(joined[name], columns) for name, columns in named.joined.items()}
        for batch in read_batches(file, path, [*dict.fromkeys(["position", *named.own])]):
            positions = batch.column("position").to_numpy(zero_copy_only=False)
            if positions[0] < last or np.any(np.diff(positions) < 0) or positions[-1] >= samples:
                raise BadShard("positions in the table", where=str(path), wanted="rising, each of a sample")
            first, last = int(positions[0]), int(positions[-1])
            beside = {name: rows.take(len(batch)) for name, rows in others.items()}
            objects[at : at + len(batch)] = chosen = evaluate(batch, beside)
            at += len(batch)
            starts[first + 1 : last + 2] += np.bincount(positions - first)
            counts[first : last + 1] += np.bincount(positions[chosen] - first, minlength=last + 1 - first)
    used = {joined[name].path.name: joined[name].sha256 for name in sorted(named.joined)}
    return Chosen(condition, objects, np.cumsum(starts, out=starts), counts, used)


class JoinedRows:
    """The rows of a joined table in order, of which any number can be taken at a time."""

    def __init__(self, table: JoinedTable, columns: Sequence[str]) -> None:
        self._path = table.path
        self._columns = columns
        self._batches = read_batches(table.open(), table.path, columns)
        self._left: list[pa.RecordBatch] = []

    def take(self, count: int) -> pa.RecordBatch:
        """Return the next `count` rows. Raises `UserError` where there are fewer, or the file is damaged."""
        import pyarrow as pa

        while sum(map(len, self._left)) < count:
            batch = next(self._batches, None)
            if batch is None:
                raise UserError("too few rows", where=str(self._path), do="join it again")
            self._left.append(batch.select([*self._columns]))
        rows = pa.Table.from_batches(self._left)
        self._left = rows.slice(count).to_batches()
        return rows.slice(0, count).combine_chunks().to_batches()[0]


def choose_of(shards: ShardSet, condition: str | None) -> Chosen | None:
    """Return `choose(shards, condition)`, or None where there is no condition."""
    return None if condition is None else choose(shards, condition)


def check_condition(condition: str, joined: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> None:
    """Raise `UserError` where a text is no condition over the columns of the table, and of these joined ones.

    Args:
        joined: type by name of the columns of each joined table.
    """
    with _evaluator(condition, joined):
        pass


@dataclass(frozen=True)
class _Named:
    """The columns that a condition names."""

    own: list[str]
    """Columns of the table of objects."""
    joined: dict[str, list[str]]
    """Columns of joined tables, by the table's name."""
    bare: dict[str, str]
    """The table of each joined column that is named without its table."""


_Evaluate = Callable[["pa.RecordBatch", Mapping[str, "pa.RecordBatch"]], NDArray[np.bool_]]
"""Returns for a batch of objects, and the same rows of each joined table by name, where a condition is true."""


@contextmanager
def _evaluator(condition: str, joined: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[_Evaluate, _Named]]:
    """Yield a function that evaluates the condition for each row of a batch, and the columns that it needs."""
    with extra("pipeline", where="where"):
        import duckdb
    with duckdb.connect(":memory:", config=dict(_LOCKED)) as connection:
        functions = connection.execute(
            "SELECT lower(function_name), list(DISTINCT coalesce(stability, function_type)) FROM duckdb_functions() "
            "WHERE function_type IN ('macro', 'scalar') GROUP BY ALL"
        ).fetchall()
        # Additions of times with a zone, and the like, depend on the session; those of numbers do not.
        allowed = {name for name, kinds in functions if "CONSISTENT" in kinds and "VOLATILE" not in kinds}
        allowed |= {name for name, kinds in functions if "macro" in kinds and _MACROS.fullmatch(name)}
        allowed -= _LONG
        connection.execute("SET enable_progress_bar = false; SET lock_configuration = true")
        named = _parse(connection, condition, allowed, joined)
        created = f"CREATE TABLE objects ({', '.join(_definitions(named, joined))})"
        _run(connection, condition, lambda: connection.execute(created))
        query = f"SELECT (\n{condition}\n) FROM "
        kind = str(_run(connection, condition, lambda: connection.sql(f"{query} objects LIMIT 0").types[0]))
        if kind != "BOOLEAN":
            raise _error(condition, "not a condition", met=f"a value of type {kind}", wanted="true or false")
        connection.execute("DROP TABLE objects")

        def evaluate(batch: pa.RecordBatch, beside: Mapping[str, pa.RecordBatch]) -> NDArray[np.bool_]:
            connection.register("objects", _side_by_side(batch, beside, named))
            rows = _run(connection, condition, lambda: connection.execute(f"{query} objects").fetchnumpy())
            connection.unregister("objects")
            (values,) = rows.values()
            return np.ma.filled(np.ma.asarray(values), False).astype(np.bool_)

        yield evaluate, named


def _definitions(named: _Named, joined: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield the definition of each column that a condition sees; a joined table is one with a field per column."""
    kinds = COLUMNS | {bare: joined[name][bare] for bare, name in named.bare.items()}
    for column in (*COLUMNS, *named.bare):
        yield f"{_quoted(column)} {_sql_type(kinds[column])}"
    for name, columns in named.joined.items():
        fields = ", ".join(f"{_quoted(column)} {_sql_type(joined[name][column])}" for column in columns)
        yield f"{_quoted(name)} STRUCT({fields})"


def _side_by_side(batch: pa.RecordBatch, beside: Mapping[str, pa.RecordBatch], named: _Named) -> pa.RecordBatch:
    """Return rows of objects and of joined tables as one batch, with the columns of `_definitions`."""
    import pyarrow as pa

    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns |= {bare: beside[name].column(bare) for bare, name in named.bare.items()}
    columns |= {name: pa.StructArray.from_arrays(rows.columns, rows.schema.names) for name, rows in beside.items()}
    return pa.record_batch(columns)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(kind: str) -> str:
    """Return DuckDB's name of a type."""
    if kind.startswith("list<"):
        return f"{_sql_type(kind[5:-1])}[]"
    if kind not in _SQL_TYPES:
        raise UserError("a type of a joined column", where=LIST, met=kind[:80], wanted=" or ".join(_SQL_TYPES))
    return _SQL_TYPES[kind]


def _run(connection: duckdb.DuckDBPyConnection, condition: str, call: Callable[[], Any]) -> Any:
    """Call a function that runs a query, at most `_SECONDS` long; raise `UserError` where the query fails."""
    import duckdb

    watch = threading.Timer(_SECONDS, connection.interrupt)
    watch.daemon = True
    watch.start()
    try:
        return call()
    except duckdb.InterruptException:
        if watch.is_alive():
            raise KeyboardInterrupt from None
        raise _error(condition, "takes too long", met=f"more than {_SECONDS:g} s for one batch of rows") from None
    except (duckdb.OutOfMemoryException, MemoryError):
        raise _error(condition, "takes too much memory", met=f"more than {_LOCKED['memory_limit']}") from None
    except duckdb.Error as error:
        raise _error(condition, "cannot be evaluated", met=str(error).partition("\n")[0][:200]) from None
    finally:
        watch.cancel()


def _parse(
    connection: duckdb.DuckDBPyConnection,
    condition: str,
    allowed: set[str],
    joined: Mapping[str, Mapping[str, str]],
) -> _Named:
    """Return the columns that a condition names; raise `UserError` where it is not one expression over a row."""
    tree = _tree(connection, condition)
    expressions = tree.pop("select_list", [])
    plain = _tree(connection, "true")
    del plain["select_list"]
    if tree != plain or len(expressions) != 1 or expressions[0].get("alias"):
        raise _error(condition, "not one expression", wanted="a condition over the columns of a row")
    parameters: set[str] = set()
    found = [*_nodes(expressions[0])]
    for node in found:
        if node["class"] not in _CLASSES:
            met = _REFUSED.get(node["class"], str(node["class"]).lower())
            raise _error(condition, "not allowed in a condition", met=met, wanted="an expression over one row")
        if node["class"] == "LAMBDA":
            parameters |= {one["column_names"][0].lower() for one in _nodes(node["lhs"]) if "column_names" in one}
        if node["class"] == "FUNCTION" and (name := node["function_name"].lower()) not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            do = f"perhaps {near[0]}" if near else ""
            wanted = "one that depends on its arguments alone, and is short"
            raise _error(condition, "no such function in a condition", met=name, wanted=wanted, do=do)
    named = _Named([], {}, {})
    for node in found:
        if node["class"] == "COLUMN_REF":
            _add_column(condition, node["column_names"], parameters, joined, named)
    return named


def _add_column(
    condition: str,
    path: Sequence[str],
    parameters: set[str],
    joined: Mapping[str, Mapping[str, str]],
    named: _Named,
) -> None:
    """Add the column that a condition names as `path` to `named`; a parameter of a lambda is none.

    Raises:
        UserError: there is no such column, or several.
    """
    names = [name.lower() for name in path]
    having = {table: column for table, columns in joined.items() for column in columns if column.lower() == names[0]}
    in_table = {column.lower(): column for column in joined.get(names[0], {})}
    if names[0] in COLUMNS:
        if names[0] not in named.own:
            named.own.append(names[0])
    elif len(names) == 2 and names[1] in in_table:
        columns = named.joined.setdefault(names[0], [])
        if in_table[names[1]] not in columns:
            columns.append(in_table[names[1]])
    elif len(names) == 1 and len(having) == 1 and names[0] not in joined:
        ((table, column),) = having.items()
        named.bare[column] = table
        _add_column(condition, [table, column], parameters, joined, named)
    elif names[0] in parameters:
        return
    elif len(names) == 1 and having:
        wanted = " or ".join(f"{table}.{column}" for table, column in having.items())
        raise _error(condition, "a column of several tables", met=path[0], wanted=wanted)
    else:
        qualified = {f"{table}.{column}".lower(): f"{table}.{column}" for table in joined for column in joined[table]}
        bare = {column.lower(): column for columns in joined.values() for column in columns}
        known = bare | qualified | {column: column for column in COLUMNS}
        near = difflib.get_close_matches(".".join(names), known, 1, 0.0)
        raise _error(condition, "no such column", met=".".join(path), wanted=known[near[0]], do=_DOCUMENT)


def _tree(connection: duckdb.DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """Return DuckDB's tree of `SELECT (condition)`; raises `UserError` on what is no such statement."""
    if "\0" in condition:
        raise _error(condition, "not a condition", met="a zero byte")
    row = _run(
        connection,
        condition,
        lambda: connection.execute("SELECT json_serialize_sql($1)", [f"SELECT (\n{condition}\n)"]).fetchone(),
    )
    parsed = json.loads(row[0])
    if parsed.get("error") or len(parsed["statements"]) != 1:
        raise _error(condition, "not a condition", met=str(parsed.get("error_message", "several statements"))[:200])
    tree: dict[str, Any] = parsed["statements"][0]["node"]
    return tree


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every expression of a tree."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("class"), str):
                yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _error(condition: str, what: str, met: str = "", wanted: str = "", do: str = "") -> UserError:
    shown = " ".join(condition.split())
    return UserError(what, where=f"where {shown[:80]}", met=met, wanted=wanted, do=do)
