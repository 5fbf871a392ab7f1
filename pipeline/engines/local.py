"""Shards written by processes of this machine."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from pipeline.engines import AGAIN
from pipeline.plan import Job, Plan
from pipeline.raw import RawInput
from pipeline.store import Store
from pipeline.task import Done, write_shard
from pipeline.work import Work
from shards.errors import UserError
from shards.lock import hold_lock


def write(
    plan: Plan, missing: Sequence[int], work: Work, workers: int | None, tick: Callable[[int], object]
) -> Generator[Done, None, None]:
    """See `Engine`. One worker, or one shard: in this process."""
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if workers <= 1:
        for shard in missing:
            yield write_shard(plan.job, plan.part(shard), plan.name(shard), work.store, work.temporary, tick)
        return
    try:
        yield from _pooled(plan, missing, work, workers, tick)
    except BrokenProcessPool:
        met = "killed, or out of memory"
        raise UserError("a worker process died", where=str(work.store), met=met, do=AGAIN) from None


def _pooled(
    plan: Plan, missing: Sequence[int], work: Work, workers: int, tick: Callable[[int], object]
) -> Generator[Done, None, None]:
    context = mp.get_context("spawn")
    counter = context.Value("Q", 0)
    with _pool(workers, context, (counter, work.lock_file)) as pool:
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


def _task(job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path) -> Done:
    return write_shard(job, inputs, name, store, temporary_folder, _tick)


def _tick(count: int) -> None:
    with _counter.get_lock():
        _counter.value += count
