"""Packages that only some verbs need: pyproject.toml lists them as extras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from shards.errors import UserError

_OURS = {"browsing", "cli", "commands", "evaluation", "inference", "pipeline", "serving", "shards", "trainer"}


@contextmanager
def extra(name: str, where: str = "", instead: str = "") -> Iterator[None]:
    """Turn a failed import into one line that says which extra to install. A context, or a decorator of a function.

    Args:
        name: the extra that holds what is imported inside.
        where: the option or the file that needs it.
        instead: what the user can do without it.

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise _missing(name, str(error), where, instead) from None


def require(name: str, *modules: str, where: str = "") -> None:
    """Check that modules of the extra `name` are installed, without importing them.

    Raises:
        UserError: one is not installed.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise _missing(name, f"no {' and no '.join(missing)}", where)


def _missing(name: str, found: str, where: str, instead: str = "") -> UserError:
    do = f'pip install "sa2va-shards[{name}]"' + (f", or {instead}" if instead else "")
    return UserError("a package is missing", where=where, met=found, do=do)
