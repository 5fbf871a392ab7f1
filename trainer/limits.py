"""What a field of the configuration accepts, written at the field: `Annotated[float, Bound(0, 1)]`.

A value that is refused raises `PydanticCustomError`; `trainer.config_errors` makes one line of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_MAX_PATH_BYTES = 4096
_MAX_NAME_BYTES = 255
"""Bytes of a path, and of a name in it, on the file systems of Linux."""
_MAX_DIGITS = 400
REFUSED = "refused"
"""Type of the errors of `refuse`."""
UNSET = "is a variable unset? Leave the key out, or give null where it may be nothing"


def refuse(what: str, *, key: str = "", met: str = "", wanted: str = "", do: str = "") -> PydanticCustomError:
    """Return the error that a validator raises, with the arguments of `UserError`.

    Args:
        key: the field, where the validator is that of the class around it.
    """
    context = {"what": what, "key": key, "met": met, "wanted": wanted, "do": do}
    return PydanticCustomError(REFUSED, "{what}", context)


@dataclass(frozen=True)
class Bound:
    """`low` <= value <= `high`; with `above`, low < value; with `below`, value < high; with `zero`, 0 too.

    NaN and infinity are out of every bound.
    """

    low: float
    high: float
    reason: str = ""
    """Reason for the upper bound; messages give it."""
    above: bool = False
    below: bool = False
    zero: bool = False

    def holds(self, value: float) -> bool:
        """Return whether `value` lies within the bound."""
        is_low_enough = value < self.high if self.below else value <= self.high
        is_high_enough = value > self.low if self.above else value >= self.low
        return bool(is_low_enough and is_high_enough) or (self.zero and value == 0)

    def __str__(self) -> str:
        high = f"{self.high:,.10g}"
        if self.above:
            return f"> {self.low:g}, at most {high}"
        return ("0, or " if self.zero else "") + f"{self.low:g} to {'below ' if self.below else ''}{high}"

    def request_for(self, value: float) -> str:
        """Return the text that asks for a right value in place of `value`."""
        if self.low == 0 and self.high == 1 and not (self.above or self.below):
            return "0 to 1"
        if value > self.high or (self.below and value == self.high):
            return f"{'<' if self.below else '<='} {self.high:g}" + (f": {self.reason}" if self.reason else "")
        if self.above or self.low == 1:
            return f"> {0 if self.low == 1 else self.low:g}"
        return f">= {self.low:g}" + (", or 0" if self.zero else "")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = core_schema.no_info_before_validator_function(self._readable, handler(source))
        return core_schema.no_info_after_validator_function(self._bounded, number)

    def _readable(self, value: Any) -> Any:
        """Return `value` as pydantic reads it: infinity without YAML's dot. A boolean is not a number."""
        if isinstance(value, bool):
            raise refuse("wrong type", met=str(value).lower(), wanted="a number")
        if not isinstance(value, str):
            return value
        if len(value) > _MAX_DIGITS and value.strip().isdigit():
            raise refuse("out of range", met=f"{len(value)} digits", wanted=self.request_for(math.inf))
        return value.replace(".inf", "inf").replace(".nan", "nan") if len(value) < 6 else value

    def _bounded(self, value: float) -> float:
        if not self.holds(value):
            raise refuse("out of range", met=str(value), wanted=self.request_for(value))
        return value


def count(high: float, reason: str, low: int = 1) -> Bound:
    """Return the bound of a count, which begins at 1 unless `low` says otherwise."""
    return Bound(low, high, reason)


@dataclass(frozen=True)
class Text:
    """A text that is not blank, is UTF-8 without NUL, and is not too long; with `is_path`, for a path on Linux."""

    is_path: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.checked, handler(source))

    def checked(self, value: Any) -> Any:
        """Return `value`, whatever is no text too; raise the error of `refuse` for a text that is refused."""
        if not isinstance(value, str):
            return value
        if not value.strip():
            raise refuse("empty value", met=repr(value), wanted="a text", do=UNSET)
        try:
            length = len(value.encode())
        except UnicodeEncodeError:
            raise refuse("not UTF-8", met=ascii(value)[:80], wanted="a text") from None
        if "\0" in value:
            raise refuse("a NUL character", met=ascii(value)[:80], wanted="a text without one")
        longest = max(len(name.encode()) for name in value.split("/")) if self.is_path else 0
        if length > _MAX_PATH_BYTES or longest > _MAX_NAME_BYTES:
            expected = f"at most {_MAX_PATH_BYTES}, and {_MAX_NAME_BYTES} between slashes"
            raise refuse("too long", met=f"{length} bytes", wanted=expected)
        return value


@dataclass(frozen=True)
class OneOf:
    """One of `names()`, which is called when a value is checked; `refusal` says what any other is."""

    refusal: str
    names: Callable[[], tuple[str, ...]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str) -> str:
        if value not in self.names():
            raise refuse(self.refusal, met=repr(value)[:300], wanted=" or ".join(self.names()))
        return value
