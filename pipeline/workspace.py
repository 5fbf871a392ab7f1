"""The state of an unfinished set: its lock, its plan, the notes of shards that are done."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.dataset import RawDataset
from pipeline.plan import Plan, check_libraries
from pipeline.raw_files import stamp
from pipeline.task import CURRENT_INPUT, PART, CurrentInput, ShardNote, note_name, part_name
from shards.errors import UserError
from shards.format import MANIFEST, VERSION, WORK
from shards.lock import hold_lock, share_lock
from shards.program import command
from shards.storage.store import LocalFolder, Store
from shards.strict_json import parse_json
from shards.table_list import LIST, OWN, listed_names

PLAN = f"{WORK}/plan"
_STAMPS = re.compile(r"files-\d+-of-\d+\.json")


@dataclass(frozen=True)
class TaskShare:
    """The shards of one of several tasks that write a set side by side, on any machines."""

    index: int
    """Number of the task, from 0."""
    count: int
    """Number of tasks."""

    def select(self, shards: range) -> range:
        """Return this task's shards: those whose number is `index` modulo `count`."""
        return shards[self.index :: self.count]


def task_share(index: int | None, count: int | None, engine: str, overwrite: bool) -> TaskShare | None:
    """Return the share that the options ask for, None where they ask for none.

    Raises:
        UserError: the options do not go together.
    """
    if index is None and count is None:
        return None
    if index is None or count is None or index >= count:
        raise UserError(
            "not a share of the shards",
            met=f"--task-index {index} --task-count {count}",
            wanted="both, with an index of 0 to count - 1",
        )
    if engine != "local":
        raise UserError("--task-index shares the shards among machines, as does --engine", do="give one of them")
    if overwrite:
        do = "delete the set that stands there first"
        raise UserError("--overwrite with --task-index: a task could remove what another one wrote", do=do)
    return TaskShare(index, count)


class Workspace:
    """The state of an unfinished set. The one process that leads a run, or a task of it, opens it and holds the lock.

    A run into a folder has its files in the folder's `.work`. A task, and a run into an object store, keep theirs
    (but for a folder's tars, which grow on its disk) among this machine's temporary files.

    Raises:
        UserError: another run writes there.
    """

    def __init__(self, store: Store, share: TaskShare | None = None) -> None:
        self.store = store
        self.share = share
        self.killed_inputs: list[str] = []
        """Inputs that an earlier run, or task, was reading when it was killed; known once this one has begun."""
        self._shard_names: set[str] = set()  # of this task, once there is a plan
        self._folder = store.work if isinstance(store, LocalFolder) else None
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        alone = self._folder if not share else None
        self._local = alone or _temporary_folder(f"{self._folder or store} {_share_name(share)}")
        self.records = self._local / "records.sqlite"
        """File for what the source finds."""
        self.temporary = self._folder or self._local
        """LocalFolder where tars grow."""
        self.lock_file = self._local / "lock"
        with ExitStack() as held:
            if self._folder and share:
                # No other run beside the tasks, and no task twice.
                held.callback(os.close, hold_lock(self._folder / "lock", exclusive=False))
                self.lock_file = self._folder / f"task-{share.index}-of-{share.count}.lock"
            self._lock = hold_lock(self.lock_file, exclusive=True)
            held.callback(os.close, self._lock)
            self._held = held.pop_all()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()  # files of workers that were stopped
        if self._local != self._folder:
            shutil.rmtree(self._local, ignore_errors=True)
        self._held.close()

    def share_lock(self) -> None:
        """Let this run's own workers hold the lock too."""
        share_lock(self._lock, self.lock_file)

    def saved_plan(self) -> Plan | None:
        """Return the plan of the unfinished set here, None where there is no such set."""
        try:
            return Plan.from_bytes(self.store.read(PLAN), f"{self.store}/{PLAN}")
        except FileNotFoundError:
            return None

    def begin(self, plan: Plan, dataset: RawDataset, overwrite: bool, keep: bool = False) -> int:
        """Go on with the unfinished set of `plan`, or begin a new one in a place that holds no other.

        Args:
            keep: keep shards whose raw files have other times now than when they were begun.

        Returns:
            The number of shards that have to be written again, for their raw files have changed.

        Raises:
            UserError: another set stands here, or one that was begun with other versions of libraries.
        """
        plan = replace(plan, tasks=self.share.count if self.share else 1)
        saved = self.saved_plan()
        if saved != plan:
            if saved and saved.digest == plan.digest:
                check_libraries(saved.libraries, f"{self.store}/{PLAN}")
            else:
                self._make_room(saved, overwrite)
            self.store.put(PLAN, plan.to_bytes())
            saved = self.saved_plan()
            if saved is None or saved.digest != plan.digest:
                raise UserError("another run has just begun here", where=str(self.store), do="wait for it, or stop it")
        shards = self.share.select(plan.shards) if self.share else plan.shards
        self._shard_names = {plan.shard_name(shard) for shard in shards}
        self._sweep()
        return self._compare_stamps(plan, dataset, keep)

    def _stamps(self, name: str) -> dict[str, str]:
        try:
            return dict(parse_json(self.store.read(name)))
        except (ValueError, TypeError) as error:
            do = "delete this unfinished set, or give --overwrite"
            raise UserError("damaged", where=f"{self.store}/{name}", met=str(error), do=do) from None

    def _compare_stamps(self, plan: Plan, dataset: RawDataset, keep: bool) -> int:
        """Remove notes of shards whose raw files have changed, and save the state of all files of this run's shards.

        Returns:
            The number of notes that were removed.
        """
        share = self.share or TaskShare(0, 1)
        name = f"{WORK}/files-{share.index}-of-{share.count}.json"
        shards = share.select(plan.shards)
        now = {plan.shard_name(shard): stamp(dataset, dataset.inputs[plan.span(shard)]) for shard in shards}
        before: dict[str, str] = {}
        files = self.store.sizes(WORK)
        for file in files:
            if _STAMPS.fullmatch(file):
                before |= self._stamps(f"{WORK}/{file}")
        changed = [shard for shard in now if shard in before and before[shard] != now[shard]]
        notes = [note_name(shard) for shard in changed if f"{shard}.json" in files and not keep]
        self.store.remove(notes)
        self.store.put(name, json.dumps(now).encode())
        return len(notes)

    def _sweep(self) -> None:
        """Remove what a killed or stopped process of this run, or of this task, left half-written."""
        for leftover in self.temporary.glob("*.tmp"):
            if not self.share or leftover.name.lstrip(".").partition(".")[0] in self._shard_names:
                if leftover.name.endswith(CURRENT_INPUT) and (current := CurrentInput.parse(leftover)):
                    self.killed_inputs.append(current[1])
                leftover.unlink(missing_ok=True)

    def _make_room(self, begun: Plan | None, overwrite: bool) -> None:
        """Remove the set that stands here, if it may be overwritten."""
        old = [name for name in self.store.sizes() if name.endswith(".tar") or name == MANIFEST]
        if (old or begun) and not overwrite:
            do = "give --overwrite to write it again, or another --out"
            difference = "other raw files, recipe, limit or shard size"
            if begun and begun.version != VERSION:
                difference = f"an unfinished one of format version {begun.version}"
                merge = command("merge")
                do = f"finish it with the release that began it, or with {merge} if all its shards stand; else {do}"
            raise UserError("a shard set made otherwise stands here", where=str(self.store), met=difference, do=do)
        # The manifest goes first: from here on, nobody takes what is left for a finished set.
        self.store.remove(name for name in old if name == MANIFEST)
        notes = [f"{WORK}/{name}" for name in self.store.sizes(WORK) if name.endswith((".json", PART))]
        self.store.remove([*notes, *self._tables(), *(name for name in old if name != MANIFEST)])

    def _tables(self) -> list[str]:
        """Return the names of the set's tables and, last, of their list."""
        files = self.store.sizes()
        listed = listed_names(self.store.read(LIST)) if LIST in files else []
        return [name for name in (*OWN, *listed, LIST) if name in files]

    def notes(self, plan: Plan, shards: range) -> Iterator[tuple[int, ShardNote]]:
        """Yield (shard, note) of those of `shards` that are done, in order. Notes are read a few at a time."""
        tars = self.store.sizes()
        noted = self.store.sizes(WORK)
        names = {shard: plan.shard_name(shard) for shard in shards}
        files = {shard: note_name(name) for shard, name in names.items() if f"{name}.json" in noted}
        for shard, data in zip(files, self.store.read_all([*files.values()]), strict=True):
            try:
                note = ShardNote.from_bytes(data)
            except ValueError:
                continue  # damaged on its disk: the shard is written once more
            parts = {part_name(names[shard], table): part.bytes for table, part in note.parts.items()}
            has_parts = all(noted.get(name.rpartition("/")[2]) == size for name, size in parts.items())
            if has_parts and (not note.entries or tars.get(note.shard.name) == note.shard.bytes):
                yield shard, note

    def remove(self) -> None:
        """Remove all that was kept of a set until it was finished."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=self.share is not None)  # two late tasks may do it at once
        else:
            self.store.remove([f"{WORK}/{name}" for name in self.store.sizes(WORK)])

    def leave_as_found(self) -> None:
        """Remove the traces of a run that did not begin, unless an unfinished set was here before."""
        if isinstance(self.store, LocalFolder) and not self.share and self.saved_plan() is None:
            self.remove()
            if not any(self.store.path.iterdir()):
                self.store.path.rmdir()


def _share_name(share: TaskShare | None) -> str:
    return f"task {share.index} of {share.count}" if share else "whole"


def _temporary_folder(purpose: str) -> Path:
    """Return a folder of this user on this machine, the same one for the same purpose: leftovers do not pile up."""
    name = f"sa2va-shards-{os.getuid()}-{hashlib.sha256(purpose.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise UserError("not a folder of this user", where=str(folder), do="set TMPDIR to another place")
    return folder
