"""YAML as mappings, lists and text: the fields of the configuration know the types of their values.

Size and depth are bounded before anything is built, because aliases multiply and nesting takes the stack.
"""

from __future__ import annotations

from typing import Any

import yaml

from shards.errors import UserError

MAX_BYTES = 1 << 20
_MAX_NODES = 100_000
_MAX_DEPTH = 32
_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + kind for kind in ["map", "seq", "str", "null", "bool", "int", "float", "timestamp", "value"]}


def read_yaml(text: bytes | str, where: str) -> Any:
    """Return YAML as dicts, lists, texts (numbers too: "1e-3") and None.

    Args:
        text: one document; an empty one gives {}.
        where: the file or key, for errors.

    Raises:
        UserError: it is not YAML, is too large or too deep with its aliases written out, names a key twice, or leaves
            a value empty.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except Exception as error:  # a YAML parser has many ways to fail, RecursionError among them
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark is not None and mark.line else where
        colon = "mapping values are not allowed" in problem or problem.endswith("but got ':'")
        do = "put quotes around a value that has a colon and a space" if colon else ""
        raise _unreadable(place, problem[:300] or type(error).__name__, do) from None
    if root is None:
        return {}
    _count(root, where, (), {})
    return _build(root, where)


def _count(node: yaml.Node, where: str, path: tuple[str, ...], counts: dict[int, int]) -> int:
    """Return the number of nodes from `node` down, aliases written out; `counts` has those known, by identity."""
    if (count := counts.get(id(node))) is not None:
        if not count:
            raise UserError("an alias inside of what it names", where=where, met=".".join(path) or "the whole")
        return count
    if len(path) > _MAX_DEPTH:
        raise UserError("nested too deeply", where=where, met=f"more than {_MAX_DEPTH} levels", wanted="fewer")
    counts[id(node)] = 0  # being counted
    if isinstance(node, yaml.MappingNode):
        count = 1 + sum(_count(value, where, (*path, str(key.value)[:40]), counts) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count = 1 + sum(_count(value, where, (*path, str(n)), counts) for n, value in enumerate(node.value))
    else:
        if node.value == "" and node.style is None:
            do = "is a variable unset? Leave the key out, or give null where it may be nothing"
            raise UserError("empty value", where=f"{where}, {'.'.join(path)}" if path else where, do=do)
        count = 1
    if count > _MAX_NODES:
        limit = f"at most {_MAX_NODES:,}, aliases written out"
        raise UserError("too large", where=where, met=f"{count:,} values", wanted=limit)
    counts[id(node)] = count
    return count


def _build(node: yaml.Node, where: str) -> str | list[Any] | dict[str, Any] | None:
    if node.tag not in _TAGS:
        raise _unreadable(where, f"the tag {str(node.tag)[:80]}")
    if isinstance(node, yaml.SequenceNode):
        return [_build(value, where) for value in node.value]
    if not isinstance(node, yaml.MappingNode):
        return None if node.tag == f"{_PREFIX}null" else str(node.value)
    content: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == f"{_PREFIX}merge":
            parts = _build(value, where)
            for part in reversed(parts) if isinstance(parts, list) else [parts]:
                if not isinstance(part, dict):
                    raise _unreadable(where, "<< without a mapping")
                merged |= part
        elif not isinstance(key, yaml.ScalarNode) or key.value in content:
            raise _unreadable(where, f"the key {str(key.value)[:80]}, given twice or not a text")
        else:
            content[key.value] = _build(value, where)
    return merged | content


def _unreadable(where: str, text: str, do: str = "") -> UserError:
    return UserError("cannot be read as YAML", where=where, met=text, do=do)
