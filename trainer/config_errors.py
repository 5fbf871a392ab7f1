"""What pydantic finds in a configuration, as our one line: the key, the value met, the value wanted, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shards.errors import UserError
from trainer.limits import REFUSED, UNSET

_SHOWN = 300
"""Characters of a value that a message shows."""
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list, such as [a, b]",
    "dict": "a mapping, such as {name: value}",
    "dataclass": "a mapping, such as {key: value}",
}
"""By the first word of pydantic's types of errors."""


def user_error(
    error: ValidationError,
    file_of: Callable[[Sequence[str | int]], str],
    keys: Sequence[str],
    accepts: Callable[[str, str], bool],
) -> UserError:
    """Return the first error that pydantic found, unknown keys before others, as one line.

    Args:
        file_of: names the file that gave the value at a place; "": the command line.
        keys: all keys there are; NAME stands for any name.
        accepts: whether `key=value` would be right; only then "did you mean" says so.
    """
    first = min(error.errors(include_url=False), key=lambda details: details["type"] not in _UNKNOWN)
    context = first.get("ctx", {})
    place = [*first["loc"][:-2]] if first["loc"][-1:] == ("[key]",) else [*first["loc"]]
    place += [name for name in context.get("key", "").split(".") if name]
    key = _dotted(place)
    where = ", ".join(part for part in (file_of(place), key) if part)
    if first["type"] in _UNKNOWN:
        close = _closest(key, place, keys)
        do = f"did you mean {close}?" if close else "docs/TRAINING.md lists the keys"
        return UserError("unknown key", where=file_of(place), met=key[:_SHOWN], do=do)
    if first["type"] == REFUSED:
        details = {name: context[name] for name in ("met", "wanted", "do")}
        return UserError(context["what"], where=where, **details)
    return _wrong_form(first, where, key, accepts)


def _wrong_form(details: ErrorDetails, where: str, key: str, accepts: Callable[[str, str], bool]) -> UserError:
    """Return the error of a value that does not have the type of its field, and what may have been meant."""
    value = details["input"]
    context = details.get("ctx", {})
    value_text = shown(value) if not isinstance(value, str) else repr(value)[:_SHOWN]
    if isinstance(value, str) and not value.strip():
        return UserError("empty value", where=where, met=value_text, wanted="a value", do=UNSET)
    close = next((form for form in _other_forms(value) if len(form) < _SHOWN and accepts(key, form)), "")
    do = f"did you mean {key}={close}?" if close else ""
    match details["type"]:
        case "missing":
            return UserError("missing", where=where, met=value_text, wanted=f"a value for {key.rpartition('.')[2]}")
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return UserError("no such choice", where=where, met=value_text, wanted=" or ".join(choices), do=do)
        case "too_short" | "too_long":
            length = context.get("min_length", context.get("max_length"))
            return UserError("not the right number of values", where=where, met=value_text, wanted=f"{length} values")
        case kind:
            expected = _WANTED.get(kind.split("_")[0], details["msg"])
            return UserError("wrong type", where=where, met=value_text, wanted=expected, do=do)


def shown(value: Any) -> str:
    """Return a value as it would be given on the command line, at most 300 characters of it."""
    return _flow(value, 4)[:_SHOWN]


def _flow(value: Any, depth: int) -> str:
    if isinstance(value, dict | list) and not depth:
        return "..."
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(below, depth - 1)}" for name, below in [*value.items()][:_SHOWN]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(below, depth - 1) for below in value[:_SHOWN]) + "]"
    return "null" if value is None else str(value)


def _other_forms(value: Any) -> Iterator[str]:
    """Yield what may have been meant: a list or a mapping for a text, a mapping or a single value for a list."""
    if isinstance(value, str):
        yield f"[{value}]"
        yield "{" + re.sub(r"\s*[:=]\s*", ": ", value) + "}"
        with suppress(ValueError, OverflowError):
            yield str(int(float(value)))
    elif isinstance(value, list):
        if len(value) == 1:
            yield _flow(value[0], 1)
        yield "{" + ", ".join(f"{_flow(item, 1)}: {{}}" for item in value) + "}"


def _dotted(place: Sequence[str | int]) -> str:
    """Return the key of a place: ("betas", 1) gives "betas[1]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _closest(key: str, place: Sequence[str | int], keys: Sequence[str]) -> str:
    """Return the known key that is most like `key`, by its last part where the whole is like none; "" for none."""
    known = [other.replace("NAME", str(place[1])) if len(place) > 2 else other for other in keys]
    last = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(last, known, n=1)
    if not close:
        by_last = {other.rpartition(".")[2]: other for other in known}
        close = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1)]
    return close[0] if close else ""
