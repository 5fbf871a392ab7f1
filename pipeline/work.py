"""What is known of an unfinished set: its lock, its plan, the notes of shards that are done."""

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

from pipeline.plan import Outline, Plan, check_libraries
from pipeline.raw_files import stamp
from pipeline.task import READING, Done, Reading, note_of
from shards.errors import UserError
from shards.format import MANIFEST, VERSION, WORK
from shards.lock import hold_lock, share_lock
from shards.program import command
from shards.storage.store import LocalFolder, Store
from shards.strict_json import parse_json

PLAN = f"{WORK}/plan"
_STAMPS = re.compile(r"files-\d+-of-\d+\.json")


@dataclass(frozen=True)
class Share:
    """The shards of one of several tasks that write a set side by side, on any machines."""

    index: int
    """Counted from 0."""
    count: int

    def of(self, shards: range) -> range:
        return shards[self.index :: self.count]


def share_of(index: int | None, count: int | None, engine: str, overwrite: bool) -> Share | None:
    """The share that a user asked for; raises `UserError` where the options do not go together."""
    if index is None and count is None:
        return None
    if index is None or count is None or index >= count:
        met, wanted = f"--task-index {index} --task-count {count}", "both, with an index of 0 to count - 1"
        raise UserError("not a share of the shards", met=met, wanted=wanted)
    if engine != "local":
        raise UserError("--task-index shares the shards among machines, as does --engine", do="give one of them")
    if overwrite:
        do = "delete the set that stands there first"
        raise UserError("--overwrite with --task-index: a task could remove what another one wrote", do=do)
    return Share(index, count)


class Work:
    """Opened by the one process that leads a run, or a task's share of it. Takes the lock.

    A run into a folder has its files in the folder's `.work`. A task, and a run into an object store, keep theirs
    (but for a folder's tars, which grow on its disk) among this machine's temporary files.

    Raises:
        UserError: another run writes there.
    """

    def __init__(self, store: Store, share: Share | None = None) -> None:
        self.store, self.share = store, share
        self._own: set[str] = set()  # names of this task's shards, once there is a plan
        self.killed_over: list[str] = []
        """Inputs that an earlier run, or task, was reading when it was killed; known once this one has begun."""
        self._folder = store.work if isinstance(store, LocalFolder) else None
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        alone = self._folder if not share else None
        self._local = alone or _temporary_folder(f"{self._folder or store} {share}")
        self.records = self._local / "records.sqlite"
        """What the source finds."""
        self.temporary = self._folder or self._local
        """Where tars grow."""
        self.lock_file = self._local / "lock"
        with ExitStack() as held:
            if self._folder and share:
                # No other run beside the tasks, and no task twice.
                held.callback(os.close, hold_lock(self._folder / "lock", exclusive=False))
                self.lock_file = self._folder / f"task-{share.index}-of-{share.count}.lock"
            self._lock = hold_lock(self.lock_file, exclusive=True)
            held.callback(os.close, self._lock)
            self._held = held.pop_all()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()  # of workers that were stopped
        if self._local != self._folder:
            shutil.rmtree(self._local, ignore_errors=True)
        self._held.close()

    def share_lock(self) -> None:
        """Let this run's own workers hold the lock too."""
        share_lock(self._lock, self.lock_file)

    def outline(self) -> Outline | None:
        """The plan of the unfinished set here."""
        try:
            return Outline.from_bytes(self.store.read(PLAN), f"{self.store}/{PLAN}")
        except FileNotFoundError:
            return None

    def known_plan(self, digest: str) -> tuple[int, int] | None:
        """(per_shard, sample_bytes) of the unfinished set here, if it is the one of this plan."""
        saved = self.outline()
        return (saved.per_shard, saved.sample_bytes) if saved and saved.digest == digest else None

    def begin(self, plan: Plan, overwrite: bool, keep: bool = False) -> int:
        """Go on with the unfinished set of `plan`, or begin a new one in a place that holds no other.

        Args:
            keep: shards whose raw files have other times now than when they were begun.

        Returns:
            How many shards have to be written again, for their raw files have changed.

        Raises:
            UserError: another set stands here, or one that was begun with other versions of libraries.
        """
        wanted = replace(plan.outline, tasks=self.share.count if self.share else 1)
        saved = self.outline()
        if saved != wanted:
            if saved and saved.digest == wanted.digest:
                check_libraries(saved.libraries, f"{self.store}/{PLAN}")
            else:
                self._make_room(saved, overwrite)
            self.store.put(PLAN, wanted.to_bytes())
            saved = self.outline()
            if saved is None or saved.digest != wanted.digest:
                raise UserError("another run has just begun here", where=str(self.store), do="wait for it, or stop it")
        self._own = {wanted.name(shard) for shard in (self.share.of(wanted.shards) if self.share else wanted.shards)}
        self._sweep()
        return self._compare_stamps(plan, keep)

    def _stamps(self, name: str) -> dict[str, str]:
        try:
            return dict(parse_json(self.store.read(name)))
        except (ValueError, TypeError) as error:
            do = "delete this unfinished set, or give --overwrite"
            raise UserError("damaged", where=f"{self.store}/{name}", met=str(error), do=do) from None

    def _compare_stamps(self, plan: Plan, keep: bool) -> int:
        """Forget shards of this run that were made of raw files that have changed; note the state of all files."""
        share = self.share or Share(0, 1)
        name = f"{WORK}/files-{share.index}-of-{share.count}.json"
        now = {plan.name(shard): stamp(plan, shard) for shard in share.of(plan.shards)}
        before: dict[str, str] = {}
        for file in self.store.sizes(WORK):
            if _STAMPS.fullmatch(file):
                before |= self._stamps(f"{WORK}/{file}")
        noted = self.store.sizes(WORK)
        changed = [shard for shard in now if shard in before and before[shard] != now[shard]]
        changed = [note_of(shard) for shard in changed if note_of(shard).removeprefix(f"{WORK}/") in noted and not keep]
        self.store.remove(changed)
        self.store.put(name, json.dumps(now).encode())
        return len(changed)

    def _sweep(self) -> None:
        """Remove what a killed or stopped process of this run, or of this task, left half-written."""
        for leftover in self.temporary.glob("*.tmp"):
            if not self.share or leftover.name.lstrip(".").partition(".")[0] in self._own:
                if leftover.name.endswith(READING) and (reading := Reading.parse(leftover)):
                    self.killed_over.append(reading[1])
                leftover.unlink(missing_ok=True)

    def _make_room(self, begun: Outline | None, overwrite: bool) -> None:
        """Remove the set that stands here, if it may be overwritten."""
        old = [name for name in self.store.sizes() if name.endswith(".tar") or name == MANIFEST]
        if (old or begun) and not overwrite:
            do = "give --overwrite to write it again, or another --out"
            met = "other raw files, recipe, limit or shard size"
            if begun and begun.version != VERSION:
                met = f"an unfinished one of format version {begun.version}"
                merge = command("merge")
                do = f"finish it with the release that began it, or with {merge} if all its shards stand; else {do}"
            raise UserError("a shard set made otherwise stands here", where=str(self.store), met=met, do=do)
        # The manifest goes first: from here on, nobody takes what is left for a finished set.
        self.store.remove(name for name in old if name == MANIFEST)
        notes = [f"{WORK}/{name}" for name in self.store.sizes(WORK) if name.endswith(".json")]
        self.store.remove([*notes, *(name for name in old if name != MANIFEST)])

    def done(self, outline: Outline, shards: range) -> Iterator[tuple[int, Done]]:
        """Those of `shards` that stand, in order, with their notes, which are read a few at a time."""
        tars, noted = self.store.sizes(), self.store.sizes(WORK)
        names = {shard: note_of(outline.name(shard)) for shard in shards}
        names = {shard: name for shard, name in names.items() if name.removeprefix(f"{WORK}/") in noted}
        for shard, data in zip(names, self.store.read_all([*names.values()]), strict=True):
            try:
                note = Done.from_bytes(data)
            except ValueError:
                continue  # damaged on its disk: the shard is written once more
            if not note.entries or tars.get(note.shard.name) == note.shard.bytes:
                yield shard, note

    def remove(self) -> None:
        """Of a finished set: all that was known of it while it was not."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=self.share is not None)  # two late tasks may do it at once
        else:
            self.store.remove([f"{WORK}/{name}" for name in self.store.sizes(WORK)])

    def leave_as_found(self) -> None:
        """After a run that did not begin: no trace of it, unless an unfinished set was here before."""
        if isinstance(self.store, LocalFolder) and not self.share and self.outline() is None:
            self.remove()
            if not any(self.store.path.iterdir()):
                self.store.path.rmdir()


def _temporary_folder(of: str) -> Path:
    """A folder of this user on this machine, the same whenever it is asked for, so that nothing heaps up."""
    name = f"sa2va-shards-{os.getuid()}-{hashlib.sha256(of.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise UserError("not a folder of this user", where=str(folder), do="set TMPDIR to another place")
    return folder
