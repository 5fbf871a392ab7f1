"""YAML of a configuration, bounded before anything is built from it: aliases multiply, and nesting takes the stack."""

from __future__ import annotations

import yaml

from shards.errors import UserError

MOST_BYTES = 1 << 20
_MOST_NODES, _DEEPEST = 100_000, 32


def check_yaml(data: bytes | str, where: str) -> None:
    """Raise `UserError` where YAML is large or deep, once its aliases are written out, or a value is left empty.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    root = yaml.compose(data, Loader=yaml.SafeLoader)
    if root is not None:
        _size(root, where, (), {})


def _size(node: yaml.Node, where: str, path: tuple[str, ...], known: dict[int, int]) -> int:
    """Nodes below `node`, aliases written out."""
    if (size := known.get(id(node))) is not None:
        if not size:
            raise UserError("an alias inside of what it names", where=where, met=".".join(path) or "the whole")
        return size
    if len(path) > _DEEPEST:
        raise UserError("nested too deeply", where=where, met=f"more than {_DEEPEST} levels", wanted="fewer")
    known[id(node)] = 0  # being counted
    if isinstance(node, yaml.MappingNode):
        size = 1 + sum(_size(value, where, (*path, str(key.value)[:40]), known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size(value, where, (*path, str(n)), known) for n, value in enumerate(node.value))
    else:
        if node.value == "" and node.style is None:
            do = "is a variable unset? Leave the key out, or give null where it may be nothing"
            raise UserError("empty value", where=f"{where}, {'.'.join(path)}" if path else where, do=do)
        size = 1
    if size > _MOST_NODES:
        met, wanted = f"{size:,} values", f"at most {_MOST_NODES:,}, aliases written out"
        raise UserError("too large", where=where, met=met, wanted=wanted)
    known[id(node)] = size
    return size
