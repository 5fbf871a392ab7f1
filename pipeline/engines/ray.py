"""Shards written by the tasks of a Ray cluster.

A task whose worker or node dies is given to another one. Its bytes follow from its arguments, and a tar appears whole
or not at all: it does no harm where both get to the end. Nodes need this package and the libraries in the versions of
the leading process, the raw data under the same path, and the place that is written to. Annotations of the inputs
travel with each task.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.dataset import Job, RawDataset
from pipeline.engines import AGAIN
from pipeline.plan import Plan, check_libraries
from pipeline.raw import RawInput
from pipeline.records import Records, RecordsWriter
from pipeline.task import Progress, ShardNote, write_shard
from pipeline.workspace import PLAN, Workspace
from shards.errors import UserError
from shards.extras import extra
from shards.lock import hold_lock
from shards.storage.store import LocalFolder, Store

_RETRIES = 10  # of a task whose worker or node died
_NAMES = 64  # files of the raw data that a node must see


@dataclass(frozen=True)
class _Run:
    """Settings that all tasks of a run share: a task needs them beside its inputs, and must find them on its node."""

    job: Job
    store: Store
    plan: bytes
    """The saved plan, as it is in the store."""
    names: tuple[str, ...]
    """Some files and folders of the raw data."""
    libraries: dict[str, str]
    """Versions of the libraries."""


def write(
    dataset: RawDataset,
    plan: Plan,
    missing: Sequence[int],
    workspace: Workspace,
    workers: int | None,
    progress: Progress,
) -> Generator[ShardNote, None, None]:
    """See `Engine`. A worker is a task that runs; None for as many as the cluster has processors."""
    root = dataset.job.root.absolute()
    names = tuple(sorted(os.listdir(root))[:_NAMES])
    store = workspace.store
    run = _Run(replace(dataset.job, root=root), store, store.read(PLAN), names, plan.libraries)
    with _cluster() as ray:
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_task)
        shared = ray.put(run)
        waiting = iter(missing)
        running: dict[Any, int] = {}
        try:
            while True:
                # A few more than run, so that no processor waits; not all, so that no node holds every input's name.
                most = workers or 2 * int(ray.cluster_resources().get("CPU", 0)) or 1
                while len(running) < most and (shard := next(waiting, None)) is not None:
                    inputs = dataset.inputs[plan.span(shard)]
                    bodies = _annotations(dataset.job.records, inputs)
                    running[task.remote(shared, inputs, bodies, plan.shard_name(shard))] = shard
                if not running:
                    break
                ready, _ = ray.wait(list(running), timeout=1)
                for reference in ready:
                    note = _result(ray, reference, store)
                    progress.advance(plan.count([running.pop(reference)]))
                    for line in note.ledger:
                        progress.leave_out(line)
                    yield note
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, store: Store) -> ShardNote:
    try:
        note: ShardNote = ray.get(reference)
        return note
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:  # the worker or its node died, more often than a task is tried again
        cause = str(error).strip().partition("\n")[0]
        raise UserError("workers die over a shard", where=str(store), met=cause, do=AGAIN) from None


@contextmanager
def _cluster() -> Iterator[Any]:
    """Connect to the cluster that RAY_ADDRESS names, else to one that runs on this machine, else start one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with extra("ray", "--engine ray"):
        import ray
    connect = not ray.is_initialized()
    if connect:
        _connect(ray)
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        address = ray.get_runtime_context().gcs_address
        cpus = int(ray.cluster_resources().get("CPU", 0))
        tqdm.write(f"ray: cluster at {address}, nodes: {nodes}, processors: {cpus}", file=sys.stderr)
        yield ray
    finally:
        if connect:
            ray.shutdown()


def _connect(ray: Any) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            do = "start it, or unset RAY_ADDRESS"
            raise UserError("no such Ray cluster", where=address, met=str(error), do=do) from None
        try:
            ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises a plain Exception where a node does not come up
            raise UserError("Ray does not start", where=platform.node(), met=str(error)) from None


def _annotations(records: Records, inputs: Sequence[RawInput]) -> list[tuple[str, list[str]]]:
    """Return what was attached to some inputs: (path, JSON texts) of each that has any."""
    found = [(item.path, list(records.bodies(item.path))) for item in inputs]
    return [(path, bodies) for path, bodies in found if bodies]


def _task(run: _Run, inputs: Sequence[RawInput], annotations: list[tuple[str, list[str]]], name: str) -> ShardNote:
    """Write a shard on a node of the cluster."""
    _check_node(run)
    with ExitStack() as held:
        local = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sa2va-shards-")))
        temporary = local
        if isinstance(run.store, LocalFolder):
            temporary = run.store.work
            held.callback(os.close, hold_lock(temporary / "lock", exclusive=False))
        job = replace(run.job, records=Records(local / "records.sqlite"))
        with RecordsWriter(job.records.file) as writer:
            for path, bodies in annotations:
                for body in bodies:
                    writer.attach(path, json.loads(body))
        return write_shard(job, inputs, name, run.store, temporary, Progress())


def _check_node(run: _Run) -> None:
    """Raise `UserError` unless this node sees what the leading process sees.

    Without the raw data, every input would be a missing file, and go to the ledger.
    """
    host = platform.node()
    check_libraries(run.libraries, host)
    if not all((run.job.root / name).exists() for name in run.names):
        do = "mount it on every node under the same path"
        raise UserError("a node does not see the raw data", where=f"{run.job.root} on {host}", do=do)
    try:
        same = run.store.read(PLAN) == run.plan
    except FileNotFoundError:
        same = False
    if not same:
        do = "write to a file system that every node mounts under the same path, or to an object store"
        raise UserError("a node does not see the shard set", where=f"{run.store} on {host}", do=do)
