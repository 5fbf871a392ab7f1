"""A sharding run: plan, write the shards on several processes, put down index, ledger and manifest.

It may be killed at any moment; the same call goes on and ends with the same bytes.
"""

from __future__ import annotations

import errno
import multiprocessing as mp
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from tqdm import tqdm

from pipeline.estimate import check_room, free_bytes
from pipeline.plan import Job, Plan
from pipeline.raw import RawInput
from pipeline.size import size_text
from pipeline.task import Done, write_shard
from pipeline.work import RECORDS, WorkFolder
from shards.atomic import atomic_write
from shards.errors import UserError
from shards.format import INDEX, LEDGER, MANIFEST
from shards.lock import hold_lock
from shards.manifest import LedgerLine, Manifest, pack_index, pack_ledger, sha256

MakePlan = Callable[[Callable[[str], tuple[int, int] | None], Path], Plan]
AGAIN = "mend it and give the same command: it goes on where it stopped"


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    manifest: Manifest
    folder: Path
    written_now: int
    """Shards written by this call; the others stood already."""
    seconds: float


def run(
    make: MakePlan,
    folder: Path,
    workers: int,
    max_bad: float,
    overwrite: bool = False,
    force: bool = False,
    command: str = "",
) -> Summary:
    """Write the shard set of a plan into `folder`.

    Args:
        make: makes the plan, given what is known of an unfinished run and a file for what the source finds (see
            `make_plan`).
        max_bad: the share of bad inputs, of all, that stops the run.
        force: begin even where the disk will not hold it.
        command: that goes on with the run, for a message.

    Raises:
        UserError: too many bad inputs, another set in the folder, a full disk, a dead worker. What is done stays.
    """
    again = f"{AGAIN}: {command}" if command else AGAIN
    try:
        with WorkFolder(folder) as work:
            return _run(make, folder, work, workers, max_bad, overwrite, force)
    except BrokenProcessPool:
        raise UserError("a worker process died", where=str(folder), met="killed, or out of memory", do=again) from None
    except OSError as error:
        room = f", {size_text(free_bytes(folder))} free" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        met = f"{error.strerror}{room}"
        raise UserError("cannot write", where=str(error.filename or folder), met=met, do=again) from None


def _run(
    make: MakePlan, folder: Path, work: WorkFolder, workers: int, max_bad: float, overwrite: bool, force: bool
) -> Summary:
    started = time.monotonic()
    try:
        plan = make(work.known_plan, work.path / RECORDS)
        finished = _finished(folder, plan)
        if finished is not None and not (overwrite and work.known_plan(plan.digest) is None):
            work.remove()
            return Summary(finished, folder, 0, time.monotonic() - started)
        if not force:
            check_room(plan, work)
        work.begin(plan, overwrite)
    except (UserError, OSError):
        work.leave_as_found()
        raise
    work.share_lock()
    # Notes stay on the disk: those of a large set together take more memory than all workers.
    stands = {shard: note.bad for shard in plan.shards if (note := work.done(plan, shard)) is not None}
    missing = [shard for shard in plan.shards if shard not in stands]
    allowed = int(max_bad * len(plan.inputs))
    bad = sum(stands.values())
    stood = sum(len(plan.part(shard)) for shard in stands)
    with (
        tqdm(total=len(plan.inputs), initial=stood, unit="sample", desc=folder.name, mininterval=0.5) as bar,
        closing(_write(plan, missing if bad <= allowed else [], folder, work, workers, bar.update)) as shards,
    ):
        for done in shards:
            bad += done.bad
            if bad > allowed:
                break
    if bad > allowed:
        ledger = [line for note in work.notes(plan) for line in note.ledger]
        atomic_write(folder / LEDGER, pack_ledger(ledger), temporary_folder=work.path)
        raise _too_many_bad(plan, ledger, allowed, folder)
    manifest = _finish(plan, folder, work)
    return Summary(manifest, folder, len(missing), time.monotonic() - started)


def _finished(folder: Path, plan: Plan) -> Manifest | None:
    """The manifest of `folder`, if it is that of this plan; raises `UserError` if one of its tars is gone."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = Manifest.read(folder)
    if manifest.plan != plan.digest or manifest.codec != plan.job.codec or manifest.selection:
        return None
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.exists() or path.stat().st_size != shard.bytes:
            met = "missing" if not path.exists() else f"{path.stat().st_size} bytes"
            do = f"delete {MANIFEST} and give the same command with --overwrite"
            raise UserError("shard of a finished set", where=str(path), met=met, wanted=f"{shard.bytes} bytes", do=do)
    return manifest


def _too_many_bad(plan: Plan, ledger: Sequence[LedgerLine], allowed: int, folder: Path) -> UserError:
    bad = [line for line in ledger if line.bad]
    shown = " | ".join(f"{line.path}: {line.reason} ({line.detail})" for line in bad[:3])
    return UserError(
        f"too many bad inputs, the first: {shown}",
        where=str(plan.job.root),
        met=f"{len(bad)} of {len(plan.inputs)}",
        wanted=f"at most {allowed}",
        do=f"see {folder / LEDGER}; raise --max-bad to go on",
    )


def _finish(plan: Plan, folder: Path, work: WorkFolder) -> Manifest:
    """Put down index, ledger and, last, the manifest: it says that the set is finished."""
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    shards, ledger, objects = [], [], 0
    for note in work.notes(plan):
        counts.update(note.notes)
        left_out.update(line.reason for line in note.ledger)
        ledger.append(pack_ledger(note.ledger))
        shards += [note.shard] if note.entries else []
        objects += note.objects
    index_bytes = pack_index(note.entries for note in work.notes(plan) if note.entries)
    ledger_bytes = b"".join(ledger)
    manifest = Manifest(
        source=plan.job.source.name,
        recipe=plan.job.recipe,
        plan=plan.digest,
        options=plan.job.options,
        inputs=len(plan.inputs),
        samples=sum(shard.samples for shard in shards),
        objects=objects,
        left_out=dict(sorted(left_out.items())),
        notes=dict(sorted(counts.items())),
        shards=tuple(shards),
        index_sha256=sha256(index_bytes),
        ledger_sha256=sha256(ledger_bytes),
        codec=plan.job.codec,
    )
    for name, data in ((INDEX, index_bytes), (LEDGER, ledger_bytes), (MANIFEST, manifest.to_bytes())):
        atomic_write(folder / name, data, temporary_folder=work.path)
    work.remove()
    return manifest


def _write(
    plan: Plan, missing: Sequence[int], folder: Path, work: WorkFolder, workers: int, tick: Callable[[int], object]
) -> Generator[Done, None, None]:
    """Write the missing shards; yield the note of each as it is done."""
    if workers == 1 or len(missing) <= 1:
        for shard in missing:
            yield write_shard(plan.job, plan.part(shard), plan.name(shard), folder, work.path, tick)
        return
    context = mp.get_context("spawn")
    counter = context.Value("Q", 0)
    with _pool(min(workers, len(missing)), context, (counter, work.lock_file)) as pool:
        waiting = iter(missing)
        running: set[Future[Done]] = set()
        before = 0
        while True:
            # A few tasks ahead of the workers, so that the queue does not hold a copy of every input's name.
            for shard in waiting:
                task = (plan.job, plan.part(shard), plan.name(shard), folder, work.path)
                running.add(pool.submit(_task, *task))
                if len(running) >= 2 * workers:
                    break
            if not running:
                break
            ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            now = counter.value
            tick(now - before)
            before = now
            for future in ready:
                running.remove(future)
                yield future.result()


@contextmanager
def _pool(
    workers: int, context: mp.context.SpawnContext, arguments: tuple[Synchronized[int], Path]
) -> Iterator[ProcessPoolExecutor]:
    """A pool whose tasks that have not begun are dropped when it is left by an error."""
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()  # a shard in the making is only a temporary file
            process.join(10)
        raise
    pool.shutdown()


_counter: Synchronized[int]


def _start_worker(counter: Synchronized[int], lock_file: Path) -> None:
    """Runs first in each worker process."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the leader stops its workers
    parent = mp.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait_for([parent.sentinel])
        os._exit(1)  # killed without a word to us: a new run must not find us writing

    threading.Thread(target=leave_with_parent, daemon=True).start()
    hold_lock(lock_file, exclusive=False)


def _task(job: Job, inputs: Sequence[RawInput], name: str, folder: Path, work: Path) -> Done:
    return write_shard(job, inputs, name, folder, work, _tick)


def _tick(count: int) -> None:
    with _counter.get_lock():
        _counter.value += count
