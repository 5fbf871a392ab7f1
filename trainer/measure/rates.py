"""Speed of a step, and its time spent waiting for data, over all processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from shards.program import command

_WINDOW = 20  # steps over which the time spent waiting is averaged
_LIMIT = 0.2  # share of the time spent waiting from which on it is worth a notice


def memory(device: torch.device) -> int:
    """Return bytes: on a GPU the peak of all tensors so far, else the resident memory of the process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Spent:
    """Time, work and memory of an optimiser step on all processes."""

    seconds: float
    samples: int
    tokens: float
    """Tokens that the student read, without padding."""
    padding: float
    """Padding tokens beside them."""
    flops: float
    """See `trainer.model.flops`; 0 where they are not counted."""
    waited: Sequence[float]
    """Seconds that each process waited for data."""
    memory: Sequence[float]
    """Bytes of each process."""
    captions: Sequence[float] = ()
    """Seconds in which the teacher of each process wrote captions."""

    @classmethod
    def of(cls, seconds: float, samples: int, each: Mapping[str, Sequence[float]]) -> Spent:
        """Build it from `each`: by name, one number per process."""
        tokens = sum(each["tokens"])
        padding = sum(each["padding"])
        flops = sum(each["flops"])
        return cls(seconds, samples, tokens, padding, flops, each["waited"], each["memory"], each["captions"])

    def rates(self, peak: float | None) -> dict[str, float]:
        """Return the numbers to record; `peak` is what one device could do in operations per second, if known."""
        values = {
            "seconds": self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "padding": self.padding / max(self.tokens + self.padding, 1),
            "data_wait": sum(self.waited) / len(self.waited) / self.seconds,
            "data_wait_max": max(self.waited) / self.seconds,
            "memory_bytes": max(self.memory),
        }
        if any(self.captions):
            values["captions"] = sum(self.captions) / len(self.captions) / self.seconds
        return values | ({"mfu": self.flops / self.seconds / peak / len(self.waited)} if peak else {})


class Bottleneck:
    """Notices, once, that a run waits for its data."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waits: deque[float] = deque(maxlen=_WINDOW)
        self._noticed = False

    def notice(self, data_wait_max: float) -> str | None:
        """Return a notice to show after a step of which the slowest process waited this share; mostly None."""
        self._waits.append(data_wait_max)
        share = sum(self._waits) / _WINDOW
        if self._noticed or len(self._waits) < _WINDOW or share < _LIMIT:
            return None
        self._noticed = True
        return (
            f"data is the limit: a process stood still for it {share:.0%} of the last {_WINDOW} steps. Raise "
            f"data.threads (now {self._threads}) while there are idle cores; else recode the shards for speed "
            f"({command('recode')} --codec raw), or put them on a faster disk"
        )
