"""Freed memory kept by the process, for work that needs as much again with the next sample."""

from __future__ import annotations

import ctypes
from functools import cache

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20  # bytes of one piece, the most that glibc takes from its own heap
_KEPT = 256 << 20


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 256 MiB that it has freed. Where the C library is not glibc, nothing changes.

    Else pictures of a few megabytes are given back to the kernel and asked for again several times a sample, and the
    kernel hands out zeroed pages one by one: with raw pictures, that took as long as all other work on a sample.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
