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
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from pipeline.engines import AGAIN
from pipeline.plan import Job, Plan
from pipeline.raw import RawInput
from pipeline.task import READING, Done, Reading, Watch, write_shard
from pipeline.work import Work
from shards.errors import UserError
from shards.lock import hold_lock
from shards.manifest import LedgerLine
from shards.processors import usable_processors
from shards.storage.store import Store


def write(
    plan: Plan, missing: Sequence[int], work: Work, workers: int | None, watch: Watch
) -> Generator[Done, None, None]:
    """See `Engine`. One worker, or one shard: in this process."""
    workers = min(workers or usable_processors(), len(missing))
    if workers <= 1:
        for shard in missing:
            yield write_shard(plan.job, plan.part(shard), plan.name(shard), work.store, work.temporary, watch)
        return
    yield from _pooled(plan, missing, work, workers, watch)


def _pooled(plan: Plan, missing: Sequence[int], work: Work, workers: int, watch: Watch) -> Generator[Done, None, None]:
    context = mp.get_context("spawn")
    counter, lines = context.Value("Q", 0), context.SimpleQueue()
    with _pool(workers, context, (counter, lines, work.lock_file), work) as pool:
        waiting = iter(missing)
        running: set[Future[Done]] = set()
        before = 0
        while True:
            # A few tasks ahead of the workers, so that the queue does not hold a copy of every input's name.
            for shard in waiting:
                task = (plan.job, plan.part(shard), plan.name(shard), work.store, work.temporary)
                running.add(pool.submit(_task, *task))
                if len(running) >= 2 * workers:
                    break
            if not running:
                break
            ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            now = counter.value
            watch.tick(now - before)
            before = now
            while not lines.empty():
                watch.left_out(lines.get())
            for future in ready:
                running.remove(future)
                yield future.result()


@contextmanager
def _pool(
    workers: int,
    context: mp.context.SpawnContext,
    arguments: tuple[Synchronized[int], SimpleQueue[LedgerLine], Path],
    work: Work,
) -> Iterator[ProcessPoolExecutor]:
    """A pool whose tasks that have not begun are dropped when it is left by an error."""
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
            raise _worker_died(processes, work) from None
        raise
    pool.shutdown()


def _worker_died(processes: Sequence[BaseProcess], work: Work) -> UserError:
    """Says which process died of what, and over which input."""
    # The pool stops the others with SIGTERM.
    codes = {one.pid or 0: one.exitcode for one in processes}
    codes = {pid: code for pid, code in codes.items() if code not in (0, None, -signal.SIGTERM)} or codes
    reading = dict(filter(None, map(Reading.parse, sorted(work.temporary.glob(f"*{READING}")))))
    met = "; ".join(
        f"{_ending(code)}{f' while it read {reading[process]}' if process in reading else ''}"
        for process, code in codes.items()
    )
    return UserError("a worker process died", where=str(work.store), met=met or "killed", do=AGAIN)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}, out of memory?" if code == -signal.SIGKILL else name


_counter: Synchronized[int]
_lines: SimpleQueue[LedgerLine]
_reasons: set[str] = set()


def _start_worker(counter: Synchronized[int], lines: SimpleQueue[LedgerLine], lock_file: Path) -> None:
    """Runs first in each worker process."""
    global _counter, _lines
    _counter, _lines = counter, lines
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the leader stops its workers
    parent = mp.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait_for([parent.sentinel])
        os._exit(1)  # killed without a word to us: a new run must not find us writing

    threading.Thread(target=leave_with_parent, daemon=True).start()
    hold_lock(lock_file, exclusive=False)


def _task(job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path) -> Done:
    return write_shard(job, inputs, name, store, temporary_folder, Watch(_tick, _left_out))


def _tick(count: int) -> None:
    with _counter.get_lock():
        _counter.value += count


def _left_out(line: LedgerLine) -> None:
    """The first of each reason goes to the leader at once; all are in the shard's note."""
    if line.reason not in _reasons:
        _reasons.add(line.reason)
        _lines.put(line)
