"""Record why objects of an input cannot be used: the ledger has the first reason, a sample's JSON has all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shards.errors import BadInput

EMPTY = "empty mask"
Fault = tuple[str, BadInput]
"""An object's id, and the reason why it cannot be used."""


def left_out(faults: Sequence[Fault]) -> dict[str, Any]:
    """Return the entry of a sample's JSON for the objects that cannot be used; empty where there are none.

    Args:
        faults: (id, reason) each.
    """
    entries = [{"id": name, "reason": error.what, "detail": error.detail} for name, error in faults]
    return {"left_out": entries} if entries else {}


def unusable(kind: str, faults: Sequence[Fault]) -> BadInput:
    """Return the error for an input of which nothing can be used: the first reason in full, the others counted.

    Args:
        kind: what cannot be used, in the singular: object, region, ...
        faults: (id, reason) each.
    """
    name, first = faults[0]
    causes = Counter(error.what for _, error in faults)
    others = ", ".join(f"{count} x {what}" for what, count in causes.items() if what != first.what)
    value = f"{kind} {name}: {first.met or first.what}"
    if len(faults) > 1:
        value += f", the first of {len(faults)}" + (f" (beside {others})" if others else "")
    return BadInput(f"no {kind} that can be used: {first.what}", met=value, wanted=first.wanted, do=first.do)
