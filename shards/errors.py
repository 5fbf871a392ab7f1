"""The one family of errors that a user can cause and mend: one clear line each, never a traceback."""

from __future__ import annotations

from typing import Self


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
        return " ".join("; ".join(part for part in (met, wanted, self.do) if part).split())

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what, self.detail]
        return " ".join("; ".join(part for part in parts if part).split())


def _rebuild(kind: type[UserError], what: str, where: str, met: str, wanted: str, do: str) -> UserError:
    return kind(what, where=where, met=met, wanted=wanted, do=do)


class BadInput(UserError):
    """One raw input that cannot become a sample. It goes to the ledger and the run goes on."""


class DroppedInput(BadInput):
    """A sound input that the recipe leaves out. It goes to the ledger too, but does not count as bad."""


class BadShard(UserError):
    """A shard, a manifest or an index that is not what `docs/FORMAT.md` says."""
