"""Keeping freed memory in the process, for work that needs as much again for the next sample."""

from __future__ import annotations

import ctypes
from functools import cache

# <malloc.h>
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST = 32 << 20  # bytes of one allocation; the largest that glibc serves from its heap
_KEPT = 256 << 20


@cache
def keep_freed_memory() -> None:
    """Make this process keep up to 256 MiB of freed memory; without effect where the C library is not glibc.

    Otherwise memory for pictures is returned to the kernel and requested again several times per sample, and the
    kernel zeroes it page by page: with raw pictures, that took as long as all other work on a sample.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
