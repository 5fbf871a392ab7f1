"""The errors that a user can cause and fix: one clear line each, never a traceback."""

from __future__ import annotations

from typing import Self

from shards.printable import printable, shortened


class UserError(Exception):
    """Something that the user gave is wrong.

    Args:
        what: what is wrong, in a few words.
        where: the file, and the key or field inside it.
        met: the value that was found.
        wanted: the value that would have been right.
        do: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", met: str = "", wanted: str = "", do: str = "") -> None:
        self.what = what
        self.where = where
        self.met = met
        self.wanted = wanted
        self.do = do
        super().__init__(what, where, met, wanted, do)  # as positional arguments, so that it survives pickling

    def at(self, where: str) -> Self:
        """Return the same error with `where` as its place."""
        return type(self)(self.what, where=where, met=self.met, wanted=self.wanted, do=self.do)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.met, self.wanted, self.do)

    @property
    def detail(self) -> str:
        """All except `what` and `where`, on one line: "met ...; wanted ...; what to do", without empty parts."""
        values = [f"{word} {text}" for word, text in (("met", self.met), ("wanted", self.wanted)) if text]
        return _one_line("; ".join([*values, self.do] if self.do else values))

    def __str__(self) -> str:
        what = _one_line(self.what)
        where = f"{printable(shortened(self.where))}: {what}" if self.where else what
        return "; ".join(part for part in (where, self.detail) if part)


def _one_line(text: str) -> str:
    """Put a text, such as a library's message of several lines, on one printable line."""
    return printable(" ".join(text.split()))


def _rebuild(kind: type[UserError], what: str, where: str, met: str, wanted: str, do: str) -> UserError:
    return kind(what, where=where, met=met, wanted=wanted, do=do)


class BadInput(UserError):
    """A raw input that cannot become a sample. It is recorded in the ledger, and the run goes on."""


class DroppedInput(BadInput):
    """A sound input that the recipe leaves out. It is recorded in the ledger, and does not count as bad."""


class BadShard(UserError):
    """A shard, a manifest or an index that breaks the rules of `docs/FORMAT.md`."""
