"""Records of a run: one line per step on the terminal, `metrics.jsonl`, and the trackers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from shards.atomic import atomic_write
from trainer.measure.drawing import Picture
from trainer.measure.rates import Bottleneck, Spent

METRICS = "metrics.jsonl"
BENCHMARK = "benchmark"
"""First part of the names of what is measured on benchmarks."""
_WARM_UP = 3  # steps left out of the timing: they allocate, compile kernels and fill caches


def read_records(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the records of `metrics.jsonl` up to optimiser step `step`; none where there is no such file.

    Where a kill cut a line short, that line and all after it are left out.
    """
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["step"] <= step:
                records.append(record)
    return records


class Tracking(Protocol):
    """Receives what a journal records: `trainer.measure.trackers.Trackers`."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, picture: Picture, text: Sequence[str], step: int) -> None: ...


class Journal:
    """Keeps the records of one run, in one process.

    Args:
        folder: where `metrics.jsonl` is written; it begins with `records`.
        steps: optimiser steps of the whole run.
        trackers: receive all records, and pictures.
        show: prints a line.
        records: of the part of the run before an interruption.
        peak: operations per second that one device could do; None where that is unknown.
        threads: number of threads that decode data.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        trackers: Tracking,
        show: Callable[[str], None],
        records: Sequence[dict[str, Any]] = (),
        *,
        peak: float | None = None,
        threads: int = 1,
    ) -> None:
        self.records = [*records]
        self._steps = steps
        self._trackers = trackers
        self._show = show
        path = folder / METRICS
        atomic_write(path, "".join(json.dumps(record) + "\n" for record in records).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._warm = _WARM_UP + max((record["step"] for record in records), default=0)
        self._marked: tuple[int, float] | None = None
        self._peak = peak
        self._bottleneck = Bottleneck(threads)

    def step(self, step: int, losses: dict[str, float], rate: float, spent: Spent) -> None:
        """Record optimiser step `step`, counted from 1."""
        rates = spent.rates(self._peak)
        values = {**losses, "lr": rate, **rates}
        self._put({"step": step, **values}, {f"train/{k}": v for k, v in values.items()}, step)
        parts = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        waits = f"data wait {rates['data_wait']:.1%}"
        captions = f"captions {rates['captions']:.1%} | " if "captions" in rates else ""
        waits += f" (max {rates['data_wait_max']:.1%})" if len(spent.waited) > 1 else ""
        mfu = f" mfu {rates['mfu']:.1%}" if "mfu" in rates else ""
        self._show(
            f"step {step:05d}/{self._steps:05d} ({step / self._steps:.1%}) | {parts} | lr {rate:.2e} | "
            f"{rates['samples_per_second']:.2f} samples/s {rates['tokens_per_second']:.0f} tokens/s{mfu} "
            f"padding {rates['padding']:.1%} | {captions}{waits} | "
            f"{rates['memory_bytes'] / 1e9:.2f} GB | {self._left(step)} left"
        )
        # The first steps wait until batches are prefetched.
        if step > self._warm and (notice := self._bottleneck.notice(rates["data_wait_max"])):
            self._show(notice)

    def held_out(self, step: int, values: dict[str, float]) -> None:
        """Record an evaluation after `step` optimiser steps."""
        named = {f"held_out/{name}": value for name, value in values.items()}
        self._put({"step": step, **named}, named, step)
        parts = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._show(f"step {step:05d}/{self._steps:05d} held out | {parts}")

    def benchmarks(self, step: int, values: Mapping[str, float]) -> None:
        """Record the measures of benchmarks after `step` optimiser steps, by names such as refcoco-val/cIoU."""
        named = {f"{BENCHMARK}/{name}": value for name, value in values.items()}
        self._put({"step": step, **named}, named, step)
        parts = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._show(f"step {step:05d}/{self._steps:05d} benchmarks | {parts}")

    def picture(self, name: str, picture: Picture, text: Sequence[str], step: int) -> None:
        """Give the trackers a picture (h, w, 3) of the evaluation after `step` steps, with lines of text."""
        self._trackers.picture(f"held_out/{name}", picture, text, step)

    def time(self) -> str:
        """Return the time in steps, with those before an interruption, and the share of it spent waiting for data."""
        steps = [record for record in self.records if "seconds" in record]
        if not steps:
            return "no step yet"
        seconds = sum(record["seconds"] for record in steps)
        waited = sum(record["seconds"] * record["data_wait"] for record in steps)
        return f"{seconds:.0f} s in steps, {waited / seconds:.1%} of it waiting for data"

    def sync(self) -> None:
        """Make the records outlive a power cut, before a checkpoint counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _put(self, record: dict[str, Any], tracked: dict[str, float], step: int) -> None:
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._trackers.log(tracked, step)

    def _left(self, step: int) -> str:
        now = time.perf_counter()
        if self._marked is None:
            if step >= self._warm:
                self._marked = (step, now)
            return "--:--"
        first, since = self._marked
        left = round((now - since) / (step - first) * (self._steps - step))
        hours, rest = divmod(left, 3600)
        return (f"{hours}:" if hours else "") + f"{rest // 60:02d}:{rest % 60:02d}"
