"""The compiled loops of `pipeline/_masks.c`, or None: Python gives the same bits, in several times the time."""

from __future__ import annotations

from typing import Any

_INTERFACE = 1
"""Raised together with the C code's where functions of one would not fit the other."""
masks: Any = None
try:
    from pipeline import _masks

    if getattr(_masks, "INTERFACE", 0) == _INTERFACE:  # else it was compiled from another release's source
        masks = _masks
except ImportError:  # no compiler
    pass
