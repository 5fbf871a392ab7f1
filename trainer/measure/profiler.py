"""A profile of some steps: one Chrome trace per process, by torch.profiler.

    OUTPUT_DIR/profile/steps-10-12-process-0.json

Beside operations and kernels it has the parts of a step by name: `data_wait`, `forward` and within it
`captions`, `backward`, `optimiser`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

FOLDER = "profile"


class Profiler:
    """Records the optimiser steps in `steps` of this process; does nothing in the others.

    Args:
        steps: optimiser steps, counted from 1; none where the range is empty.
        folder: `output_dir`.
        rank: of this process.
        show: prints a text in the main process.
    """

    def __init__(self, steps: range, folder: Path, rank: int, show: Callable[[str], None]) -> None:
        self._steps = steps
        self._folder = folder / FOLDER
        self._rank = rank
        self._show = show
        self._running: profile | None = None
        self._first = 0

    def begin(self, step: int) -> None:
        """Begin to record before `step`, where it is the first of the range that this process does."""
        if step not in self._steps or self._running:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(activities=activities)
        self._running.start()
        self._first = step

    def end(self, step: int, stopping: bool = False) -> None:
        """Write what was recorded after `step`, where it is the last of the range, or the run is `stopping`."""
        if not self._running or (step + 1 in self._steps and not stopping):
            return
        self._running.stop()
        path = self._folder / f"steps-{self._first}-{step}-process-{self._rank}.json"
        partial = path.with_name(f".{path.name}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._running.export_chrome_trace(str(partial))
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # a run does not end for want of a profile
            log.warning("%s: the profile could not be written: %s", path, error)
        else:
            self._show(f"profile, one file per process: {path}; open it at https://ui.perfetto.dev or chrome://tracing")
        self._running = None
