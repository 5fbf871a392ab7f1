"""Processors that this process may use, which may be fewer than those of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_CONTROLLERS = Path("/sys/fs/cgroup")


def usable_processors(groups: Path = _GROUPS, controllers: Path = _CONTROLLERS) -> int:
    """Return how many processors the process may use at a time, at least 1.

    It is the number in its affinity (set by taskset and batch systems), or the quota of its control groups (set by
    containers) where that is smaller. A fraction of a processor does not count.

    Args:
        groups: names the control groups of the process, see cgroups(7).
        controllers: where the control groups are mounted.
    """
    # Only Linux knows the affinity.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(groups, controllers)])))


def _quotas(groups: Path, controllers: Path) -> Iterator[float]:
    """Yield the quota in processors of each control group that the process is in, and of each group above it."""
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, names, path = line.split(":", 2)
            if names and "cpu" not in names.split(","):
                continue
            # A container may see its own group as the root, whatever the path.
            group = controllers / names / path.lstrip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(controllers):
                    break
                yield from _version_2(folder) if not names else _version_1(folder)


def _version_2(group: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        yield int(quota) / int(period)  # "max", which means none, is no number


def _version_1(group: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text("ascii")) for name in ("quota", "period"))
        if quota > 0:
            yield quota / period
