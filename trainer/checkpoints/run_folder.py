"""The checkpoints of a run on disk: each is complete or not there; `latest` and `best` point at two of them.

checkpoints/step-0000500/    written as .step-0000500.tmp, synced, renamed
checkpoints/latest           a link, moved once the checkpoint is complete
checkpoints/best             a link: the lowest held-out mask loss
checkpoint                   a link to checkpoints/latest, where exports look

A folder that cannot be removed (network file systems refuse it while a file is open) is named in the log, and ends no
run: its removal is tried again at the next checkpoint.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import sync_folder
from shards.errors import UserError
from shards.lock import hold_lock
from trainer.checkpoints.background import BackgroundWriter
from trainer.checkpoints.checkpoint import STATE, read_state

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LATEST = "latest"
BEST = "best"
_FINAL = "checkpoint"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk, a quota or a limit that is full."""


class RunFolder:
    """The folder of a run, opened and written by one of its processes.

    Args:
        folder: `output_dir`.
        keep: number of newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.checkpoints = folder / CHECKPOINTS
        self.report = folder / "report.html"
        self.writer = BackgroundWriter()
        """Runs `save` beside the training."""
        self._keep = keep
        self._lock: int | None = None

    def open(self) -> None:
        """Lock the folder for this run, and remove what a killed run left unfinished.

        Raises:
            UserError: nothing can be written here, another run is writing here, or the folder is not that of a run.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = hold_lock(self.checkpoints / ".lock", exclusive=True)
        except OSError as error:
            where = f"output_dir, {self.folder}"
            do = "give another output_dir"
            raise UserError("cannot be written", where=where, met=str(error.strerror), do=do) from None
        self.check()
        self._remove_leftovers()
        latest = self.latest()
        for folder in self._all():
            if latest and folder.name > latest.name:  # complete, but the run was killed before it counted
                with _logged(folder):
                    _discard(folder)

    def check(self) -> None:
        """Raise `UserError` where the folder is not that of a run that can be resumed. Nothing is written."""
        final = self.folder / _FINAL
        if final.exists() and not final.is_symlink():
            do = "give another output_dir"
            raise UserError("weights of a run that cannot be resumed stand here", where=str(final), do=do)
        if not self.latest() and (found := self._all()):
            do = f"link the one to go on with: ln -s {found[-1].name} {self.checkpoints / LATEST}"
            raise UserError("checkpoints, but none is the latest", where=str(self.checkpoints), do=do)

    def close(self) -> None:
        """Wait until nothing is written any more, and unlock the folder."""
        self.writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def latest(self) -> Path | None:
        """Return the newest checkpoint, from which the run goes on; None where there is none."""
        link = self.checkpoints / LATEST
        return link.resolve() if (link / STATE).exists() else None

    def save(self, step: int, nbytes: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint, move `latest` to it, then remove those that are not to be kept.

        Args:
            step: optimiser steps done.
            nbytes: about how much room it needs, for the message where there is too little.
            write: fills the folder that it is given.

        Raises:
            UserError: it could not be written. All earlier ones are as they were.
        """
        target = self.checkpoints / f"step-{step:07d}"
        partial = self.checkpoints / f".{target.name}.tmp"
        try:
            if partial.exists():
                _discard(partial)
            partial.mkdir()
            write(partial)
            sync_folder(partial)
            if target.exists():  # newer than `latest` when the run began, and could not be removed then
                _discard(target)
            os.replace(partial, target)
            sync_folder(self.checkpoints)
            _link(self.checkpoints / LATEST, target.name)
            _link(self.folder / _FINAL, f"{CHECKPOINTS}/{LATEST}")
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._not_saved(step, nbytes, error) from None
        self._rotate(target)
        return target

    def _not_saved(self, step: int, nbytes: int, error: OSError) -> UserError:
        free = shutil.disk_usage(self.folder).free
        latest = self.latest()
        before = f"{latest.name} stands as it was" if latest else "there is none before it"
        room = "make room, and " if error.errno in NO_ROOM else ""
        return UserError(
            f"the checkpoint of step {step} could not be written",
            where=str(self.checkpoints),
            met=f"{error.strerror or error}, {free:,} bytes free",
            wanted=f"{nbytes:,} bytes",
            do=f"{before}; {room}start the same command again",
        )

    def _all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def _rotate(self, latest: Path) -> None:
        """Move `best`, and remove leftovers and checkpoints that are not to be kept; what fails is logged."""
        self._remove_leftovers()
        complete = self._all()
        folders = [folder for folder in complete if folder.name <= latest.name]
        losses = {folder: loss for folder in folders if (loss := _held_out(folder)) is not None and math.isfinite(loss)}
        kept = folders[-self._keep :]
        if losses:
            best = min(losses, key=lambda folder: losses[folder])
            kept.append(best)
            with _logged(self.checkpoints / BEST, "this link could not be moved"):
                _link(self.checkpoints / BEST, best.name)
        for folder in complete:
            if folder not in kept:
                with _logged(folder):
                    _discard(folder)

    def _remove_leftovers(self) -> None:
        for leftover in self.checkpoints.glob(".*.tmp"):
            with _logged(leftover):
                _remove(leftover)


@contextmanager
def _logged(path: Path, what: str = "this folder could not be removed") -> Iterator[None]:
    """Log an `OSError` instead of raising it: the run goes on, and its next checkpoint tries the same again."""
    try:
        yield
    except OSError as error:
        log.warning("%s: %s (%s); the next checkpoint tries again", path, what, error.strerror or error)


def _discard(folder: Path) -> None:
    """Rename `folder`, so that it is a leftover and no checkpoint, and remove that; log where only the latter fails.

    Raises:
        OSError: it cannot be renamed.
    """
    names = (folder.with_name(f".{folder.name.strip('.')}.{number}.old.tmp") for number in itertools.count())
    leftover = next(name for name in names if not name.exists())
    os.replace(folder, leftover)
    with _logged(leftover):
        _remove(leftover)


def _held_out(folder: Path) -> float | None:
    """Return the held-out mask loss of a checkpoint; None where it has none, or its state is damaged."""
    try:
        return read_state(folder).held_out
    except UserError as error:
        log.warning("%s", error)
        return None


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target`, atomically."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
