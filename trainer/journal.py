"""What a run says of itself: a line a step, `metrics.jsonl`, and the trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WARM_UP = 3  # steps left out of the timing: they allocate, compile kernels and fill caches


class Journal:
    """Records of one run. One process keeps it.

    Args:
        folder: gets `metrics.jsonl`.
        steps: optimiser steps of the whole run.
        track: receives (values, step), for example `Accelerator.log`.
        show: receives each line.
    """

    def __init__(
        self, folder: Path, steps: int, track: Callable[[dict[str, float], int], None], show: Callable[[str], None]
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self._steps, self._track, self._show = steps, track, show
        self._file = open(folder / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._marked: tuple[int, float] | None = None

    def step(
        self, step: int, losses: dict[str, float], rate: float, seconds: float, waited: float, samples: int
    ) -> None:
        """Put down optimiser step `step`, counted from 1, which took `seconds`, `waited` of them for data."""
        share = waited / seconds
        values = {**losses, "lr": rate, "seconds": seconds, "data_wait": share, "samples_per_second": samples / seconds}
        self._put({"step": step, **values}, {f"train/{k}": v for k, v in values.items()}, step)
        parts = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self._show(
            f"step {step:05d}/{self._steps:05d} ({step / self._steps:.1%}) | {parts} | lr {rate:.2e} | "
            f"{samples / seconds:.2f} samples/s | data wait {share:.1%} | {self._left(step)} left"
        )

    def held_out(self, step: int, values: dict[str, float]) -> None:
        """Put down an evaluation after `step` optimiser steps."""
        named = {f"held_out/{name}": value for name, value in values.items()}
        self._put({"step": step, **named}, named, step)
        parts = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._show(f"step {step:05d}/{self._steps:05d} held out | {parts}")

    def close(self) -> None:
        self._file.close()

    def _put(self, record: dict[str, Any], tracked: dict[str, float], step: int) -> None:
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._track(tracked, step)

    def _left(self, step: int) -> str:
        now = time.perf_counter()
        if self._marked is None:
            if step >= _WARM_UP:
                self._marked = (step, now)
            return "--:--"
        first, since = self._marked
        left = round((now - since) / (step - first) * (self._steps - step))
        hours, rest = divmod(left, 3600)
        return (f"{hours}:" if hours else "") + f"{rest // 60:02d}:{rest % 60:02d}"
