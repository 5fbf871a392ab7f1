"""Read JSON annotations: files of any size as a stream, files of one sample at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ijson

from pipeline.boundary import track_entries
from pipeline.json_faults import MAX_DEPTH, DepthChecked, Nesting, json_fault, json_fault_of_bytes, too_deep
from pipeline.text import open_text, read_text, unpacked
from shards.errors import BadInput, UserError

_MAX_BYTES = 1 << 30  # of a file that is read whole
_MAX_LINE = 64 << 20  # bytes
_HUGE = re.compile(rb"[eE]\+?[0-9]{3}")


def read_items(path: Path, prefix: str = "item") -> Iterator[Any]:
    """Yield the values at `prefix` (ijson's notation) of a JSON file; raises `UserError` where it is broken."""
    return _stream(path, prefix, ijson.items)


def read_pairs(path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each member of the object at `prefix`; raises `UserError` where the file is broken."""
    return _stream(path, prefix, ijson.kvitems)


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file that is one JSON list, or JSON Lines: one record per line.

    A line after the first that cannot be read is yielded as the `BadInput` that says why.

    Raises:
        UserError: the list is broken, or the first line.
    """
    with open_text(path) as file:
        if file.peek(1).lstrip()[:1] != b"{":
            yield from read_items(path)
            return
        lines = enumerate(iter(partial(file.readline, _MAX_LINE), b""), 1)
        texts = ((number, line.strip()) for number, line in lines if line.strip())
        for place, (number, text) in enumerate(track_entries(path, texts)):
            try:
                yield parse_json(text, f"{path}, line {number}", _MAX_LINE)
            except BadInput as error:
                if place:
                    yield error
                    continue
                raise UserError(
                    "neither one JSON list nor JSON Lines",
                    where=error.where,
                    met=f"{error.what}: {error.met}",
                    wanted="[RECORD, RECORD, ...], or one record per line",
                ) from None


def read_json(path: Path, most: int = _MAX_BYTES) -> Any:
    """Read a JSON file of at most `most` bytes; raises `BadInput` where it is broken or holds NaN."""
    return parse_json(read_text(path, most), str(path))


def parse_json(data: bytes, where: str, most: int = _MAX_BYTES) -> Any:
    """Parse bytes of JSON, also with a byte order mark or in gzip; raises `BadInput` as `read_json` does."""
    data = unpacked(data, where, most)
    nesting = Nesting()
    nesting.add(data)
    if nesting.deepest > MAX_DEPTH:
        raise too_deep(where, BadInput)
    try:
        return json.loads(
            data, parse_constant=_refuse_constant, parse_float=_finite_float if _HUGE.search(data) else None
        )
    except (ValueError, RecursionError) as error:
        raise json_fault_of_bytes(data, where, BadInput, (str(error).splitlines() or [""])[0]) from None


def _stream(path: Path, prefix: str, read: Any) -> Iterator[Any]:
    with open_text(path) as file:
        checked = DepthChecked(file, str(path), UserError)
        try:
            yield from track_entries(path, read(checked, prefix, use_float=True))
            return
        except (ijson.JSONError, UnicodeDecodeError) as error:
            start = checked.start
            text = (str(error).splitlines() or [""])[0]
    with open_text(path) as file:
        raise json_fault(file, str(path), UserError, start, text)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} in JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if number - number != 0:
        raise ValueError(f"{digits} is beyond all numbers")
    return number
