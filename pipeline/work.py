"""The folder `.work` inside an unfinished shard set: its lock, its plan, the notes of shards that are done."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.plan import Plan
from pipeline.task import Done
from shards.atomic import atomic_write
from shards.errors import UserError
from shards.format import MANIFEST
from shards.lock import hold_lock

WORK, RECORDS = ".work", "records.sqlite"


class WorkFolder:
    """Opened by the one process that leads a run. Makes `.work` and takes its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / WORK
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = hold_lock(self.lock_file, exclusive=True)
        self._sweep()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()  # of workers that were stopped
        os.close(self._lock)

    def _sweep(self) -> None:
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    def share_lock(self) -> None:
        """Let this run's own workers hold the lock too."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def known_plan(self, digest: str) -> tuple[int, int] | None:
        """(per_shard, sample_bytes) of the unfinished run here, if it is the one of this plan."""
        saved = self._saved_plan()
        return (int(saved["per_shard"]), int(saved["sample_bytes"])) if saved.get("digest") == digest else None

    def begin(self, plan: Plan, overwrite: bool) -> None:
        """Go on with the unfinished run of `plan`, or begin a new one in a folder that holds no other."""
        if self._saved_plan().get("digest") == plan.digest:
            return
        old = [*self.folder.glob("*.tar"), self.folder / MANIFEST] if self.folder.exists() else []
        old = [path for path in old if path.exists()]
        if (old or self._saved_plan()) and not overwrite:
            do = "give --overwrite to write it again, or another --out"
            met = "other raw files, recipe, limit or shard size"
            raise UserError("a shard set made otherwise stands here", where=str(self.folder), met=met, do=do)
        # The manifest goes first: from here on, nobody takes what is left for a finished set.
        for path in sorted(old, key=lambda path: path.name != MANIFEST):
            path.unlink()
        for note in self.path.glob("*.json"):
            note.unlink()
        body = {"digest": plan.digest, "per_shard": plan.per_shard, "sample_bytes": plan.sample_bytes}
        atomic_write(self.path / "plan", json.dumps(body).encode())

    def _saved_plan(self) -> dict[str, int | str]:
        try:
            return dict(json.loads((self.path / "plan").read_bytes()))
        except FileNotFoundError:
            return {}

    def done(self, plan: Plan, shard: int) -> Done | None:
        """The note of a shard, if that shard is done."""
        try:
            note = Done.from_bytes((self.path / f"{plan.name(shard)}.json").read_bytes())
            stands = not note.entries or (self.folder / note.shard.name).stat().st_size == note.shard.bytes
        except FileNotFoundError:
            return None
        return note if stands else None

    def notes(self, plan: Plan) -> Iterator[Done]:
        """The notes of all shards that are done, in order, read one by one."""
        for shard in plan.shards:
            if (note := self.done(plan, shard)) is not None:
                yield note

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def leave_as_found(self) -> None:
        """After a run that did not begin: no trace of it, unless an unfinished one was here before."""
        if not self._saved_plan():
            self.remove()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
