"""Shards written by processes of this machine."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from pipeline.dataset import Job, RawDataset
from pipeline.engines import AGAIN
from pipeline.plan import Plan
from pipeline.raw import RawInput
from pipeline.task import CURRENT_INPUT, CurrentInput, Progress, ShardNote, write_shard
from pipeline.workspace import Workspace
from shards.errors import UserError
from shards.lock import hold_lock
from shards.manifest import LedgerLine
from shards.processors import usable_processors
from shards.storage.store import Store

_Task = tuple[Job, Sequence[RawInput], str, Store, Path]
"""Arguments of `write_shard`, but for its progress."""


def write(
    dataset: RawDataset,
    plan: Plan,
    missing: Sequence[int],
    workspace: Workspace,
    workers: int | None,
    progress: Progress,
) -> Generator[ShardNote, None, None]:
    """See `Engine`. One worker, or one shard, is written in this process."""
    place = (workspace.store, workspace.temporary)
    tasks = ((dataset.job, dataset.inputs[plan.span(shard)], plan.shard_name(shard), *place) for shard in missing)
    workers = min(workers or usable_processors(), len(missing))
    if workers <= 1:
        for task in tasks:
            yield write_shard(*task, progress)
        return
    yield from _pooled(tasks, workspace, workers, progress)


def _pooled(
    tasks: Iterator[_Task], workspace: Workspace, workers: int, progress: Progress
) -> Generator[ShardNote, None, None]:
    context = mp.get_context("spawn")
    counter = context.Value("Q", 0)
    lines = context.SimpleQueue()
    with _pool(workers, context, (counter, lines, workspace.lock_file), workspace) as pool:
        running: set[Future[ShardNote]] = set()
        before = 0
        while True:
            # A few tasks ahead of the workers, so that the queue does not hold a copy of every input's name.
            running |= {pool.submit(_write_shard, *task) for task in islice(tasks, 2 * workers - len(running))}
            if not running:
                break
            ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            now = counter.value
            progress.advance(now - before)
            before = now
            while not lines.empty():
                progress.leave_out(lines.get())
            for future in ready:
                running.remove(future)
                yield future.result()


@contextmanager
def _pool(
    workers: int,
    context: mp.context.SpawnContext,
    arguments: tuple[Synchronized[int], SimpleQueue[LedgerLine], Path],
    workspace: Workspace,
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes. An error ends them, and drops the tasks that have not begun."""
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments)
    try:
        yield pool
    except BaseException as error:
        processes = [*(pool._processes or {}).values()]
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()  # a shard in the making is only a temporary file
            process.join(10)
        if isinstance(error, BrokenProcessPool):
            raise _worker_died(processes, workspace) from None
        raise
    pool.shutdown()


def _worker_died(processes: Sequence[BaseProcess], workspace: Workspace) -> UserError:
    """Return the error that says which process died of what, and over which input."""
    # The pool stops the others with SIGTERM.
    codes = {one.pid or 0: one.exitcode for one in processes}
    codes = {pid: code for pid, code in codes.items() if code not in (0, None, -signal.SIGTERM)} or codes
    files = sorted(workspace.temporary.glob(f"*{CURRENT_INPUT}"))
    inputs = dict(filter(None, map(CurrentInput.parse, files)))
    causes = "; ".join(
        f"{_ending(code)}{f' while it read {inputs[process]}' if process in inputs else ''}"
        for process, code in codes.items()
    )
    return UserError("a worker process died", where=str(workspace.store), met=causes or "killed", do=AGAIN)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}, out of memory?" if code == -signal.SIGKILL else name


_counter: Synchronized[int]
_lines: SimpleQueue[LedgerLine]
_reasons: set[str] = set()


def _start_worker(counter: Synchronized[int], lines: SimpleQueue[LedgerLine], lock_file: Path) -> None:
    """Run first in each worker process."""
    global _counter, _lines
    _counter = counter
    _lines = lines
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the leader stops its workers
    parent = mp.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait_for([parent.sentinel])
        os._exit(1)  # the leader was killed: a new run must not find this process writing

    threading.Thread(target=leave_with_parent, daemon=True).start()
    hold_lock(lock_file, exclusive=False)


def _write_shard(job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path) -> ShardNote:
    return write_shard(job, inputs, name, store, temporary_folder, Progress(_advance, _leave_out))


def _advance(count: int) -> None:
    with _counter.get_lock():
        _counter.value += count


def _leave_out(line: LedgerLine) -> None:
    """Send the first line of each reason to the leader at once; all lines are in the shard's note."""
    if line.reason not in _reasons:
        _reasons.add(line.reason)
        _lines.put(line)
