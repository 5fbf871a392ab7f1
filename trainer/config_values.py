"""Values of a configuration before they have types: of the YAML file, the command line and the environment."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.regular_file import read_regular
from trainer.config_errors import shown
from trainer.limits import UNSET
from trainer.yaml_text import MAX_BYTES, read_yaml

_USAGE = "[config.yaml] key=value ..."
_MAX_LEVELS = 3
"""Dots of a key that lead to a level below; mix.dual.weight has most."""


class Given:
    """What `[config.yaml] [key=value ...]` gives.

    Args:
        arguments: of the command line.
        keys: top-level keys of a configuration.

    Raises:
        UserError: a file or a value that cannot be read, or more than one file.
    """

    def __init__(self, arguments: Sequence[str], keys: Collection[str]) -> None:
        files = [argument for argument in arguments if _is_file(argument, keys)]
        if len(files) > 1:
            raise UserError("more than one configuration file", met=", ".join(files), wanted=_USAGE)
        self._file = files[0] if files else ""
        self._from_file = _read_file(Path(files[0])) if files else {}
        parsed = [parse(argument) for argument in arguments if argument not in files]
        self._from_command_line: dict[str, Any] = functools.reduce(merged, parsed, {})

    def over(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Return `defaults` with the file's values, then the command line's, and interpolations replaced."""
        return _resolved(merged(merged(defaults, self._from_file), self._from_command_line))

    def file_of(self, place: Sequence[str | int]) -> str:
        """Return the file where it gave the value at a place, such as ("data", "shards", 0); else ""."""
        is_from_file = _has(self._from_file, place) and not _has(self._from_command_line, place)
        return self._file if is_from_file else ""


def _is_file(argument: str, keys: Collection[str]) -> bool:
    """Return whether an argument is a file, not `key=value`: a path may hold "=", and a key holds no "/"."""
    key, equals, _ = argument.partition("=")
    is_key = key.split(".")[0] in keys
    return not equals or "/" in key or (not is_key and os.path.isfile(argument))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = read_regular(path, MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted=_USAGE) from None
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror), wanted="a YAML file") from None
    if len(data) > MAX_BYTES:
        raise UserError("too large", where=str(path), wanted=f"at most {MAX_BYTES:,} bytes")
    values = read_yaml(data, str(path))
    if not isinstance(values, dict):
        raise UserError("not a mapping", where=str(path), met=shown(values), wanted="key: value")
    return values


def parse(argument: str) -> dict[str, Any]:
    """Return the value of one `key=value`, nested as the key's dots say."""
    key, _, text = argument.partition("=")
    if not text.strip():
        raise UserError("empty value", where=key, met=repr(text), wanted="key=value", do=UNSET)
    return nested(key, read_yaml(text, argument))


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for the key "a.b"; below the deepest key there is, dots are part of a name."""
    first, *others = reversed(key.split(".", _MAX_LEVELS))
    return functools.reduce(lambda below, name: {name: below}, others, {first: value})


def merged(base: Any, update: Any) -> Any:
    """Return `base` with the values of `update`, key by key; all else, lists too, is replaced as a whole."""
    if not isinstance(base, dict) or not isinstance(update, dict):
        return update
    return base | {key: merged(base[key], value) if key in base else value for key, value in update.items()}


def _has(values: Any, keys: Sequence[str | int]) -> bool:
    """Return whether the value at `keys` is set in `values`, by itself or as part of what holds it."""
    for key in keys:
        if not isinstance(values, dict):
            return True
        if key not in values:
            return False
        values = values[key]
    return True


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of everything in `node` that is not a mapping."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with interpolations replaced. What stands for a list or a mapping is read as one."""
    if not any("${" in str(value) for _, value in leaves(values)):
        return values
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        where = str(error.full_key or "configuration")
        reason = str(error).splitlines()[0][:300]
        raise UserError("cannot be resolved", where=where, met=reason, do="give a value") from None
    except RecursionError:
        raise UserError("cannot be resolved", where="configuration", met="a value that refers to itself") from None
    read: dict[str, Any] = _read_again(values, resolved)
    return read


def _read_again(raw: Any, resolved: Any) -> Any:
    """Return `resolved` with lists, mappings and null where an interpolation gave their text."""
    if isinstance(raw, dict) and isinstance(resolved, dict):
        return {key: _read_again(raw[key], value) for key, value in resolved.items()}
    if isinstance(resolved, str) and str(raw).startswith("${") and (resolved[:1] in ("[", "{") or resolved == "null"):
        return read_yaml(resolved, str(raw))
    return resolved
