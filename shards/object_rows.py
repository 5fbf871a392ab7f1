"""Rows of `objects.parquet`: one per object of a sample. `docs/TABLE.md` describes the columns."""

from __future__ import annotations

import json
from typing import Any

from shards.sample import dicts
from shards.table_kind import Row, SampleContent, TableKind
from shards.table_list import OBJECTS

COLUMNS: dict[str, str] = {
    "key": "string",
    "position": "int64",
    "object": "int32",
    "id": "string",
    "source": "string",
    "path": "string",
    "split": "string",
    "frames": "int32",
    "height": "int32",
    "width": "int32",
    "areas": "list<double>",
    "area": "double",
    "area_min": "double",
    "area_max": "double",
    "cells": "list<int32>",
    "filled": "list<int32>",
    "texts": "list<string>",
    "words": "int32",
    "category": "string",
    "expressions": "list<string>",
    "more": "string",
}
"""Columns and their types, in order."""
_JSON = json.JSONEncoder(sort_keys=True)
_COLUMN_NAMES = ("id", "texts", "filled", "mask_sizes", "source_keys")


def object_rows(content: SampleContent) -> list[Row]:
    """Return the rows of the objects of a sample, each with the values of `COLUMNS` in order.

    Raises:
        BadShard: its masks or prompts cannot be decoded.
    """
    meta = content.meta
    if not meta["objects"]:
        return []
    areas, cells = content.areas.T, content.cells.T
    means, least, largest = (values.tolist() for values in (areas.mean(axis=1), areas.min(axis=1), areas.max(axis=1)))
    first = meta["frames"][0]
    named = _expressions(meta)
    about = _text(meta.get("source")), _text(meta.get("path"))
    size = len(meta["frames"]), first["height"], first["width"]
    rows = []
    for n, item in enumerate(meta["objects"]):
        split = item.get("split") if isinstance(item.get("split"), str) else meta.get("split")
        texts = [_clean(text) for text in item["texts"] if isinstance(text, str)]
        filled = item.get("filled", [0] * len(meta["frames"]))
        rows.append(
            (
                *(content.key, content.position, n, _clean(item["id"]), *about, _text(split), *size),
                *(areas[n].tolist(), means[n], least[n], largest[n]),
                *(cells[n].tolist(), filled),
                *(texts, max((len(text.split()) for text in texts), default=0)),
                *(_text(item.get("category")), named.get(item["id"], []), _more(item)),
            )
        )
    return rows


def _expressions(meta: dict[str, Any]) -> dict[str, list[str]]:
    """Return the texts of the sample's expressions by the id of each object that they name."""
    named: dict[str, list[str]] = {}
    for item in dicts(meta.get("expressions")):
        ids = item.get("objects")
        if isinstance(item.get("text"), str) and isinstance(ids, list):
            for name in dict.fromkeys(name for name in ids if isinstance(name, str)):
                named.setdefault(name, []).append(_clean(item["text"]))
    return named


def _more(item: dict[str, Any]) -> str:
    """Return the object's other numbers, texts and truth values as JSON, by name."""
    clashing = item.get("source_keys")
    others = {name: value for name, value in item.items() if name not in _COLUMN_NAMES}
    others |= clashing if isinstance(clashing, dict) else {}
    if isinstance(item.get("category"), str):
        others.pop("category", None)
    kept = {name: value for name, value in others.items() if isinstance(value, str | int | float)}
    return _JSON.encode(kept)


def _text(value: Any) -> str | None:
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    """Return the text with half surrogate pairs, which UTF-8 cannot hold, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


OBJECTS_TABLE = TableKind(OBJECTS, "objects", COLUMNS, object_rows, False, lambda manifest: manifest.objects)
