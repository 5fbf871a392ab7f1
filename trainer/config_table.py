"""Write the table of keys into docs/TRAINING.md, from the fields of `trainer/config.py`.

python -m trainer.config_table
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from shards.errors import UserError
from trainer.config import fields
from trainer.limits import Bound

DOCUMENT = Path(__file__).parents[1] / "docs" / "TRAINING.md"
_BEGIN = "<!-- Keys, written by: python -m trainer.config_table -->\n"
_END = "<!-- End of keys -->\n"


def table() -> str:
    """Return the Markdown table of all keys: default, values that are accepted, description."""
    lines = ["| key | default | values | |", "|---|---|---|---|"]
    for key, info in fields():
        description = " ".join((info.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_default(info)} | {_values(info)} | {description} |")
    return "\n".join(lines) + "\n"


def with_table(document: str) -> str:
    """Return a document with the current table between its two marker lines.

    Raises:
        UserError: the document does not have both markers.
    """
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise UserError("no place for the table of keys", wanted=f"{_BEGIN.strip()} and {_END.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, list):
        return ", ".join(map(_number, value)) or "-"
    return "-" if value in (None, {}) else _number(value)


def _number(value: Any) -> str:
    """Return a number as people write it (2e-5), and what is no number as YAML does."""
    return str(value).lower().replace("e-0", "e-") if isinstance(value, bool | float) else str(value)


def _values(info: FieldInfo) -> str:
    return "; ".join(dict.fromkeys(_accepted(info.annotation, info.metadata)))


def _accepted(hint: Any, constraints: Iterable[Any]) -> Iterator[str]:
    """Yield the choices and bounds of a type and of the types inside it, but no names of a registry."""
    if get_origin(hint) is Annotated:
        yield from _accepted(hint.__origin__, hint.__metadata__)
        return
    if hint is bool:
        yield "true, false"
    if get_origin(hint) is Literal:
        yield ", ".join(get_args(hint))
        return
    yield from (str(constraint) for constraint in constraints if isinstance(constraint, Bound))
    for inner in get_args(hint):
        yield from _accepted(inner, ())


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
