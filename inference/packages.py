"""Packages that only deployment needs."""

from __future__ import annotations

from importlib.util import find_spec

from shards.errors import UserError


def need(*names: str) -> None:
    """Raise `UserError` unless all these packages are installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError("packages are missing", met=", ".join(missing), do="install them with pip install '.[deploy]'")
