"""Values that often break readers of other people's data."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (-1, 0, 1, 2, 0.5, -0.0, 1.0, 99, 4097, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 1e308, -1e-320)
TEXTS = (
    "",
    " ",
    "0",
    "1.0",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\data\\1.jpg",
    "a\0b",
    "a\u2028b\x0bc\x85d",
    "\ud800",
    "\x1b[31mred\x1b[0m [/red]",
    "nai\u0308ve.jpg",
    "x" * 300,
    "x" * 70_000,
    "%2e%2e/1.jpg",
    "\u202egnp.exe",
    "NaN",
    "http://127.0.0.1:9/1.jpg",
    ".",
    "CON",
)
LITERALS = ("NaN", "Infinity", "-Infinity", "1e999", "-", "01", "'a'", "nul", "1" * 5000, "[" * 3000, "{}}", "\x00")
"""Texts that are not JSON, or that parsers read differently."""


def value(draw: random.Random) -> Any:
    """Return a value of JSON that a reader seldom expects."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(NUMBERS)
    if kind == 1:
        return draw.choice(TEXTS)
    if kind == 2:
        return draw.choice([None, True, False, [], {}, [[]], {"": None}, [None], [{}]])
    if kind == 3:
        return [draw.choice(NUMBERS) for _ in range(draw.choice([1, 2, 3, 4, 5, 6, 7, 300]))]
    if kind == 4:
        size = [draw.choice([0, 1, 5, 96, 128, 2**16, 2**31]), draw.choice([0, 1, 96, 128, -3, 1.5])]
        counts = draw.choice(["", "P`]<", "zzz", "\u00e9", [5, -5], [10**12], [0] * 10, None, 7])
        return {"size": size, "counts": counts}
    nested: Any = draw.choice([None, 1, "a"])
    for _ in range(draw.choice([2, 50, 400])):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    return nested


def changed(draw: random.Random, tree: Any) -> Any:
    """Return a copy of `tree` with one value, key or item changed."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice([*tree])
        kind = draw.randrange(8)
        if kind == 0:
            return {name: item for name, item in tree.items() if name != key}
        if kind == 1:
            renamed = draw.choice([str(key).upper(), f" {key}", f"{key}_", draw.choice(TEXTS[:12])])
            return {(renamed if name == key else name): item for name, item in tree.items()}
        if kind == 2:
            return {**tree, draw.choice([*TEXTS[:12], "crc32", "mask_sizes", "filled", "frames", "path"]): value(draw)}
        return {**tree, key: changed(draw, tree[key])}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        place = draw.randrange(len(tree))
        kind = draw.randrange(9)
        if kind == 0:
            return tree[:place] + tree[place + 1 :]
        if kind == 1:
            return [*tree, tree[place]]
        if kind == 2:
            return tree[: len(tree) // 2]
        return [changed(draw, item) if i == place else item for i, item in enumerate(tree)]
    other_type: Any = str(tree) if isinstance(tree, int | float) else [tree]
    return draw.choice([value(draw), value(draw), value(draw), other_type, {"0": tree}])


def as_text(draw: random.Random, tree: Any) -> str:
    """Return `tree` as JSON, sometimes with a text in it that is not."""
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5, allow_nan=True)
    if draw.random() < 0.15:
        places = [i for i, letter in enumerate(text) if letter in ":,[{"]
        place = draw.choice(places) + 1 if places else 0
        text = text[:place] + draw.choice(LITERALS) + text[place:]
    return text
