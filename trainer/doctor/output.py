"""The folder that a run writes in, checked before the run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints.resume import find_beginning
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config
from trainer.doctor.data import Data
from trainer.doctor.findings import Finding, fail, ok, warn


def check_output(config: Config, data: Data, processes: int) -> Iterator[Finding]:
    """Yield whether the run can write, and where it would go on from a run in the same folder.

    Raises:
        UserError: the run would raise it, too.
    """
    folder = Path(config.output_dir)
    parent = existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "no folder can be made here" if parent.is_dir() else f"{parent} is not a folder"
        yield fail("output_dir", f"{folder}: {what}; give another output_dir")
        return
    run = RunFolder(folder, config.checkpoint.keep)
    if _is_locked(run.checkpoints / ".lock"):
        yield fail("output_dir", f"{folder}: another run is writing here; wait for it, or give another output_dir")
        return
    run.check()
    if data.faults:
        what = "what would become of the run here is known" if run.latest() else "a run would begin anew"
        yield warn("output_dir", f"{folder}: {what} once the shards can be read")
        return
    beginning = find_beginning(config, run, data.described, config.batch_size * config.accumulation * processes)
    if beginning.finished:
        text = f"{folder}: a finished run, {beginning.step:,} steps; nothing would be done"
        yield warn("output_dir", f"{text}. More steps=N go on, another output_dir starts anew")
    elif beginning.checkpoint:
        yield ok("output_dir", f"{folder}: would go on after step {beginning.step:,}, {beginning.checkpoint}")
    else:
        yield ok("output_dir", f"{folder}: would begin anew")


def existing_parent(path: Path) -> Path:
    """Return `path`, or the closest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _is_locked(path: Path) -> bool:
    """Return whether a run holds the lock file at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
