"""Parsing JSON that every parser reads in the same way: no NaN, no repeated key, no nesting that overflows a stack."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | memoryview) -> Any:
    """Return the value of UTF-8 JSON text.

    Raises:
        ValueError: not JSON, or JSON that parsers read differently: NaN, Infinity, a key twice in an object, deep
            nesting, a byte order mark.
    """
    try:
        return _DECODER.decode(bytes(data).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return values


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
