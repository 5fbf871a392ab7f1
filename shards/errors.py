"""The one family of errors that a user can cause and mend: one clear line each, never a traceback."""

from __future__ import annotations

from typing import Self

from shards.printable import printable, shortened


class UserError(Exception):
    """Something the user gave does not hold.

    Args:
        what: what is wrong, in a few words.
        where: the file, and the key or field inside it.
        met: the value that was found.
        wanted: the value that would have been right.
        do: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", met: str = "", wanted: str = "", do: str = "") -> None:
        self.what, self.where, self.met, self.wanted, self.do = what, where, met, wanted, do
        super().__init__(what, where, met, wanted, do)  # as positional arguments, so that it survives pickling

    def at(self, where: str) -> Self:
        """The same error with its place."""
        return type(self)(self.what, where=where, met=self.met, wanted=self.wanted, do=self.do)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.met, self.wanted, self.do)

    @property
    def detail(self) -> str:
        """All but what and where, on one line: "met ...; wanted ...; what to do", without the parts that are empty."""
        met, wanted = (f"{word} {text}" if text else "" for word, text in (("met", self.met), ("wanted", self.wanted)))
        return _one_line("; ".join(part for part in (met, wanted, self.do) if part))

    def __str__(self) -> str:
        what = _one_line(self.what)
        where = f"{printable(shortened(self.where))}: {what}" if self.where else what
        return "; ".join(part for part in (where, self.detail) if part)


def _one_line(text: str) -> str:
    """Put a text, such as a library's message of several lines, on one line that can be printed."""
    return printable(" ".join(text.split()))


def _rebuild(kind: type[UserError], what: str, where: str, met: str, wanted: str, do: str) -> UserError:
    return kind(what, where=where, met=met, wanted=wanted, do=do)


class BadInput(UserError):
    """One raw input that cannot become a sample. It goes to the ledger and the run goes on."""


class DroppedInput(BadInput):
    """A sound input that the recipe leaves out. It goes to the ledger too, but does not count as bad."""


class BadShard(UserError):
    """A shard, a manifest or an index that is not what `docs/FORMAT.md` says."""
