"""Normalize the ids by which annotations name pictures, objects and categories."""

from __future__ import annotations

import re
from typing import Any

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")


def as_id(value: Any) -> str | None:
    """Return an id as text; None where `value` cannot be an id: a list, null, true, NaN, an empty text.

    Numbers are compared as numbers: 7, 7.0, "7", " 7" and "7.0" are one id, "7". A text with leading zeros ("07") is a
    name and no number: it differs from "7".
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    number = _WHOLE.fullmatch(text)
    if number is not None:
        return "0" if number[1] == "-0" else number[1]
    return text or None


def id_of(record: Any, key: str = "id") -> str | None:
    """Return the id that a record has under `key`, as `as_id` reads it; None where it has none, or is no record."""
    return as_id(record.get(key)) if isinstance(record, dict) else None
