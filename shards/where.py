"""Choosing objects of a shard set by an SQL condition over its table, evaluated by DuckDB.

A condition is one expression over the columns of one row. It reads nothing else: the connection has no files, network,
extensions or settings. Subqueries, aggregates and functions that depend on more than their arguments are refused.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import BadShard, UserError
from shards.extras import extra
from shards.reader import ShardSet
from shards.table import COLUMNS, open_table, read_batches, table_path

if TYPE_CHECKING:
    import duckdb
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

    def of(self, position: int) -> list[int]:
        """Return the positions of the chosen objects of a sample, ascending."""
        return np.flatnonzero(self.objects[self.starts[position] : self.starts[position + 1]]).tolist()

    def __str__(self) -> str:
        samples = int((self.counts > 0).sum())
        return (
            f"where {self.condition}: {int(self.counts.sum()):,} of {len(self.objects):,} objects, in {samples:,} of "
            f"{len(self.starts) - 1:,} samples; the others are left out"
        )


def choose(shards: ShardSet, condition: str) -> Chosen:
    """Return the objects of a set for which a condition is true; null counts as false.

    Memory holds a byte per object, some per sample, and one batch of rows.

    Raises:
        UserError: the condition is none, a column does not exist, evaluating takes too much memory or time, no object
            is chosen, or the set has no table of its own.
    """
    return choose_rows(open_table(shards), table_path(shards.folder), len(shards), condition)


def choose_rows(file: pq.ParquetFile, path: Path, samples: int, condition: str) -> Chosen:
    """Return the rows of a table of so many samples for which a condition is true; see `choose`. `path` is its own."""
    objects = np.empty(file.metadata.num_rows, np.bool_)
    starts = np.zeros(samples + 1, np.int64)
    counts = np.zeros(samples, np.int32)
    at = 0
    last = 0
    with _evaluator(condition) as (evaluate, columns):
        for batch in read_batches(file, path, [*dict.fromkeys(["position", *columns])]):
            positions = batch.column("position").to_numpy(zero_copy_only=False)
            if positions[0] < last or np.any(np.diff(positions) < 0) or positions[-1] >= samples:
                raise BadShard("positions in the table", where=str(path), wanted="rising, each of a sample")
            first, last = int(positions[0]), int(positions[-1])
            objects[at : at + len(batch)] = chosen = evaluate(batch)
            at += len(batch)
            starts[first + 1 : last + 2] += np.bincount(positions - first)
            counts[first : last + 1] += np.bincount(positions[chosen] - first, minlength=last + 1 - first)
    if not counts.any():
        raise UserError("no object is chosen", where=str(path), met=f"where {condition}", do=_DOCUMENT)
    return Chosen(condition, objects, np.cumsum(starts, out=starts), counts)


def choose_of(shards: ShardSet, condition: str | None) -> Chosen | None:
    """Return `choose(shards, condition)`, or None where there is no condition."""
    return None if condition is None else choose(shards, condition)


def check_condition(condition: str) -> None:
    """Raise `UserError` where a text is no condition over the columns of the table."""
    with _evaluator(condition):
        pass


@contextmanager
def _evaluator(condition: str) -> Iterator[tuple[Callable[[Any], NDArray[np.bool_]], list[str]]]:
    """Yield a function that evaluates the condition for each row of a batch, and the columns that it needs."""
    with extra("pipeline", where="where"):
        import duckdb
    with duckdb.connect(":memory:", config=dict(_LOCKED)) as connection:
        kinds = {"string": "VARCHAR", "double": "DOUBLE", "int32": "INTEGER", "int64": "BIGINT"}
        kinds |= {f"list<{name}>": f"{kind}[]" for name, kind in kinds.items()}
        columns = ", ".join(f'"{name}" {kinds[kind]}' for name, kind in COLUMNS.items())
        connection.execute(f"CREATE TABLE objects ({columns})")
        functions = connection.execute(
            "SELECT lower(function_name), list(DISTINCT coalesce(stability, function_type)) FROM duckdb_functions() "
            "WHERE function_type IN ('macro', 'scalar') GROUP BY ALL"
        ).fetchall()
        # Additions of times with a zone, and the like, depend on the session; those of numbers do not.
        allowed = {name for name, kinds in functions if "CONSISTENT" in kinds and "VOLATILE" not in kinds}
        allowed |= {name for name, kinds in functions if "macro" in kinds and _MACROS.fullmatch(name)}
        allowed -= _LONG
        connection.execute("SET lock_configuration = true")
        needed = _parse(connection, condition, allowed)
        query = f"SELECT (\n{condition}\n) FROM "
        kind = str(_run(connection, condition, lambda: connection.sql(f"{query} objects LIMIT 0").types[0]))
        if kind != "BOOLEAN":
            raise _error(condition, "not a condition", met=f"a value of type {kind}", wanted="true or false")
        connection.execute("DROP TABLE objects")

        def evaluate(batch: Any) -> NDArray[np.bool_]:
            connection.register("objects", batch)
            rows = _run(connection, condition, lambda: connection.execute(f"{query} objects").fetchnumpy())
            connection.unregister("objects")
            (values,) = rows.values()
            return np.ma.filled(np.ma.asarray(values), False).astype(np.bool_)

        yield evaluate, needed


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


def _parse(connection: duckdb.DuckDBPyConnection, condition: str, allowed: set[str]) -> list[str]:
    """Return the columns that a condition names; raise `UserError` where it is not one expression over a row."""
    tree = _tree(connection, condition)
    expressions = tree.pop("select_list", [])
    plain = _tree(connection, "true")
    del plain["select_list"]
    if tree != plain or len(expressions) != 1 or expressions[0].get("alias"):
        raise _error(condition, "not one expression", wanted="a condition over the columns of a row")
    names: dict[str, str] = {}
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
    for node in found:
        if node["class"] == "COLUMN_REF":
            name = node["column_names"][0]
            if name.lower() in COLUMNS:
                names[name.lower()] = name
            elif name.lower() not in parameters:
                near = difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.0)
                raise _error(condition, "no such column", met=name, wanted=near[0], do=_DOCUMENT)
    return [*names]


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
