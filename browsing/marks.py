"""Marks that a person gives to samples and objects: a file of lines that is only ever appended to.

Each line is JSON: `set`, `key`, `object` (its position in the sample; null for the whole sample) and `mark`. The last
line about a sample or an object stands; an empty mark takes it back. A line is on disk before the page says so. A last
line that was torn by a kill is cut off before the next one is written.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.extras import extra
from shards.format import KEY, MAX_OBJECTS
from shards.printable import os_error_text
from shards.reader import ShardSet
from shards.regular_file import read_regular
from shards.strict_json import parse_json

MOST_LETTERS = 100
"""Longest mark."""
Target = tuple[str, int | None]
"""The key of a sample, and the position of an object in it; None for the whole sample."""


class Marks:
    """The marks of one file. It is made when the first mark is given.

    Args:
        path: of the file.

    Raises:
        UserError: it is there, and is no file of marks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._of_set: dict[str, dict[Target, str]] = {}
        self._lock = threading.Lock()
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            data = read_regular(self.path)
        except OSError as error:
            raise UserError("no file of marks", where=str(self.path), met=os_error_text(error)) from None
        whole, _, torn = data.rpartition(b"\n")
        for number, line in enumerate([*whole.split(b"\n"), torn] if _is_line(torn) else whole.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line)
                name, target, mark = _checked(values)
            except ValueError as error:
                where = f"{self.path}, line {number}"
                raise UserError("not a mark", where=where, met=str(error)[:80]) from None
            self._note(name, target, mark)

    def _note(self, name: str, target: Target, mark: str) -> None:
        own = self._of_set.setdefault(name, {})
        if mark:
            own[target] = mark
        else:
            own.pop(target, None)

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the marks of a set, by key and object."""
        with self._lock:
            found = [(key, number, mark) for (key, number), mark in self._of_set.get(name, {}).items()]
        found.sort(key=lambda one: (one[0], -1 if one[1] is None else one[1]))
        return [{"key": key, "object": number, "mark": mark} for key, number, mark in found]

    def give(self, name: str, key: str, number: int | None, mark: str) -> None:
        """Give a mark to a sample of a set, or to an object of it; "" takes it back.

        Raises:
            UserError: the mark is too long, or the file cannot be written.
        """
        values = {"set": name, "key": key, "object": number, "mark": mark}
        try:
            _checked(values)
        except ValueError as error:
            raise UserError("not a mark", met=str(error)) from None
        with self._lock:
            try:
                self._append(json.dumps(values, sort_keys=True).encode("ascii") + b"\n")
            except OSError as error:
                raise UserError("the mark is not kept", where=str(self.path), met=os_error_text(error)) from None
            self._note(name, (key, number), mark)

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            begin = max(size - (1 << 16), 0)
            tail = os.pread(descriptor, size - begin, begin)
            torn = tail[tail.rfind(b"\n") + 1 :]
            if _is_line(torn):  # only its line end is missing
                line = b"\n" + line
            elif torn:
                os.ftruncate(descriptor, size - len(torn))
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def to_parquet(self, name: str, shards: ShardSet) -> bytes:
        """Return the marks of a set as parquet for `cli.py join`: `key`, `object` and `mark`, a row for each object.

        A mark of a sample becomes one of each of its objects that has no mark of its own. A sample without objects has
        no row, as in the set's table.

        Raises:
            UserError: the set has no table, or it is damaged.
        """
        with extra("pipeline", where="marks"):
            import pyarrow as pa
            import pyarrow.compute as pc
            import pyarrow.parquet as pq

            from shards.table import open_table, read_batches, table_path
        with self._lock:
            given = dict(self._of_set.get(name, {}))
        keys = pa.array(sorted({key for key, _ in given}), pa.string())
        rows = []
        for batch in read_batches(open_table(shards), table_path(shards.folder), ["key", "object"]):
            for row in batch.filter(pc.is_in(batch.column("key"), keys)).to_pylist():
                mark = given.get((row["key"], row["object"])) or given.get((row["key"], None))
                if mark:
                    rows.append({**row, "mark": mark})
        fields = [pa.field("key", pa.string()), pa.field("object", pa.int32()), pa.field("mark", pa.string())]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), file)
        return file.getvalue()


def _is_line(data: bytes) -> bool:
    """Return whether bytes without a line end are a whole mark."""
    try:
        return bool(data.strip()) and bool(_checked(parse_json(data)))
    except ValueError:
        return False


def _checked(values: Any) -> tuple[str, Target, str]:
    """Return set, target and mark of a line; raises `ValueError` on another one."""
    if not isinstance(values, dict) or not isinstance(values.get("set"), str):
        raise ValueError(f"{str(values)[:60]}, wanted set, key, object and mark")
    key, number, mark = (values.get(name) for name in ("key", "object", "mark"))
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError(f"key {key!r:.80}")
    if number is not None and (type(number) is not int or not 0 <= number < MAX_OBJECTS):
        raise ValueError(f"object {number!r:.40}")
    if not isinstance(mark, str) or len(mark) > MOST_LETTERS:
        raise ValueError(f"mark {mark!r:.40}, wanted at most {MOST_LETTERS} characters")
    return values["set"], (key, number), mark
