"""The checkpoints of a run on disk: each is whole or not there, `latest` and `best` point at two of them.

checkpoints/step-0000500/    written as .step-0000500.tmp, synced, renamed
checkpoints/latest           a link; moves when the checkpoint stands
checkpoints/best             a link: the lowest held-out mask loss
checkpoint                   a link to checkpoints/latest, where exports look
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shards.atomic import sync_folder
from shards.errors import UserError
from shards.lock import hold_lock
from trainer.checkpoints.checkpoint import STATE, read_state

log = logging.getLogger(__name__)

CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"
_FINAL = "checkpoint"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk, a quota or a limit that is full."""


class RunFolder:
    """To be opened and written by one process of a run.

    Args:
        folder: `output_dir`.
        keep: newest checkpoints that stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.checkpoints, self.report = folder, folder / CHECKPOINTS, folder / "report.html"
        self._keep = keep
        self._lock: int | None = None

    def open(self) -> None:
        """Take the folder for this run and remove what a killed one left unfinished.

        Raises:
            UserError: nothing can be written here, another run is writing here, or what stands here is not a run's.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = hold_lock(self.checkpoints / ".lock", exclusive=True)
        except OSError as error:
            met, do = str(error.strerror), "give another output_dir"
            raise UserError("cannot be written", where=f"output_dir, {self.folder}", met=met, do=do) from None
        self.check()
        for leftover in self.checkpoints.glob(".*.tmp"):
            _remove(leftover)
        latest = self.latest()
        for folder in self._all():
            if latest and folder.name > latest.name:  # whole, but the run was killed before it counted
                self._discard(folder)

    def check(self) -> None:
        """Raise `UserError` where what stands here is not a run's. Nothing is written."""
        final = self.folder / _FINAL
        if final.exists() and not final.is_symlink():
            do = "give another output_dir"
            raise UserError("weights of a run that cannot be resumed stand here", where=str(final), do=do)
        if not self.latest() and (found := self._all()):
            do = f"link the one to go on with: ln -s {found[-1].name} {self.checkpoints / LATEST}"
            raise UserError("checkpoints, but none is the latest", where=str(self.checkpoints), do=do)

    def close(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def latest(self) -> Path | None:
        """The checkpoint to go on with."""
        link = self.checkpoints / LATEST
        return link.resolve() if (link / STATE).exists() else None

    def save(self, step: int, nbytes: int, write: Callable[[Path], None]) -> Path:
        """Put a checkpoint there, move `latest` to it, then remove what need not stay.

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
            _remove(partial)
            partial.mkdir()
            write(partial)
            sync_folder(partial)
            os.replace(partial, target)
            sync_folder(self.checkpoints)
            _link(self.checkpoints / LATEST, target.name)
            _link(self.folder / _FINAL, f"{CHECKPOINTS}/{LATEST}")
            self._rotate()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._not_saved(step, nbytes, error) from None
        return target

    def _not_saved(self, step: int, nbytes: int, error: OSError) -> UserError:
        free = shutil.disk_usage(self.folder).free
        latest = self.latest()
        stands = f"{latest.name} stands as it was" if latest else "there is none before it"
        room = "make room, and " if error.errno in NO_ROOM else ""
        return UserError(
            f"the checkpoint of step {step} could not be written",
            where=str(self.checkpoints),
            met=f"{error.strerror or error}, {free:,} bytes free",
            wanted=f"{nbytes:,} bytes",
            do=f"{stands}; {room}start the same command again",
        )

    def _all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def _rotate(self) -> None:
        folders = self._all()
        losses = {folder: _held_out(folder) for folder in folders}
        judged = {folder: loss for folder, loss in losses.items() if loss is not None and math.isfinite(loss)}
        kept = folders[-self._keep :]
        if judged:
            best = min(judged, key=lambda folder: judged[folder])
            kept.append(best)
            _link(self.checkpoints / BEST, best.name)
        for folder in folders:
            if folder not in kept:
                self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Remove a checkpoint: what remains of it half-way is a leftover, not a checkpoint."""
        doomed = self.checkpoints / f".{folder.name}.old.tmp"
        _remove(doomed)
        os.replace(folder, doomed)
        _remove(doomed)


def _held_out(folder: Path) -> float | None:
    """The mask loss of a checkpoint; None also where its state has been damaged: that ends no run that goes on."""
    try:
        return read_state(folder).held_out
    except UserError as error:
        log.warning("%s", error)
        return None


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target` in one move."""
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
