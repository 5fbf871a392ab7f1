"""Shards written by the tasks of a Ray cluster.

A task whose worker or node dies is given to another one; its bytes follow from its arguments, and a tar appears whole
or not at all, so it does no harm where both get to the end. Nodes need this package and the libraries in the versions
of the leading process, the raw data under the same path, and the place that is written to. What annotation files say
of the inputs travels with each task.
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

from pipeline.engines import AGAIN
from pipeline.plan import Job, Plan, check_libraries
from pipeline.raw import RawInput
from pipeline.records import RecordsWriter, open_records
from pipeline.task import Done, Watch, write_shard
from pipeline.work import PLAN, Work
from shards.errors import UserError
from shards.lock import hold_lock
from shards.storage.store import LocalFolder, Store

_DEATHS = 10  # of workers and nodes, that a task survives
_NAMES = 64


@dataclass(frozen=True)
class _Leader:
    """What a task needs to know beside its inputs, and what it must find on its node."""

    job: Job
    store: Store
    plan: bytes
    """As it stands in the store."""
    names: tuple[str, ...]
    """Some that stand in the raw data's folder."""
    libraries: dict[str, str]
    """Versions."""


def write(
    plan: Plan, missing: Sequence[int], work: Work, workers: int | None, watch: Watch
) -> Generator[Done, None, None]:
    """See `Engine`. A worker is a task that runs; None: as many as the cluster has processors."""
    root = plan.job.root.absolute()
    names = tuple(sorted(os.listdir(root))[:_NAMES])
    leader = _Leader(replace(plan.job, root=root), work.store, work.store.read(PLAN), names, plan.outline.libraries)
    with _cluster() as ray:
        task = ray.remote(num_cpus=1, max_retries=_DEATHS)(_task)
        told = ray.put(leader)
        waiting = iter(missing)
        running: dict[Any, int] = {}
        try:
            while True:
                # A few more than run, so that no processor waits; not all, so that no node holds every input's name.
                most = workers or 2 * int(ray.cluster_resources().get("CPU", 0)) or 1
                while len(running) < most and (shard := next(waiting, None)) is not None:
                    running[task.remote(told, plan.part(shard), _said(plan, shard), plan.name(shard))] = shard
                if not running:
                    break
                ready, _ = ray.wait(list(running), timeout=1)
                for reference in ready:
                    done = _result(ray, reference, work.store)
                    watch.tick(len(plan.part(running.pop(reference))))
                    for line in done.ledger:
                        watch.left_out(line)
                    yield done
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, store: Store) -> Done:
    try:
        done: Done = ray.get(reference)
        return done
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:  # the worker or its node died, once more than a task survives
        met = str(error).strip().partition("\n")[0]
        raise UserError("workers die over a shard", where=str(store), met=met, do=AGAIN) from None


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, else one that runs on this machine, else one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        do = "pip install 'sa2va-shards[ray]'"
        raise UserError("a package is missing", where="--engine ray", met=str(error), do=do) from None
    mine = not ray.is_initialized()
    if mine:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
        except ConnectionError as error:
            if address := os.environ.get("RAY_ADDRESS"):
                do = "start it, or unset RAY_ADDRESS"
                raise UserError("no such Ray cluster", where=address, met=str(error), do=do) from None
            try:
                ray.init(address="local", include_dashboard=False, **quiet)
            except Exception as error:  # Ray's own word for a node that does not come up
                raise UserError("Ray does not start", where=platform.node(), met=str(error)) from None
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        address, cpus = ray.get_runtime_context().gcs_address, int(ray.cluster_resources().get("CPU", 0))
        tqdm.write(f"ray: cluster at {address}, nodes: {nodes}, processors: {cpus}", file=sys.stderr)
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _said(plan: Plan, shard: int) -> list[tuple[str, list[str]]]:
    """What was found of a shard's inputs: paths, and JSON texts."""
    records = open_records(plan.job.records)
    said = [(item.path, list(records.bodies(item.path))) for item in plan.part(shard)]
    return [(path, bodies) for path, bodies in said if bodies]


def _task(leader: _Leader, inputs: Sequence[RawInput], said: list[tuple[str, list[str]]], name: str) -> Done:
    """Runs on a node of the cluster."""
    _look_around(leader)
    with ExitStack() as held:
        local = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sa2va-shards-")))
        temporary = local
        if isinstance(leader.store, LocalFolder):
            temporary = leader.store.work
            held.callback(os.close, hold_lock(temporary / "lock", exclusive=False))
        job = replace(leader.job, records=local / "records.sqlite")
        with RecordsWriter(job.records) as writer:
            for path, bodies in said:
                for body in bodies:
                    writer.attach(path, json.loads(body))
        held.callback(open_records.cache_clear)
        return write_shard(job, inputs, name, leader.store, temporary, Watch())


def _look_around(leader: _Leader) -> None:
    """Raise `UserError` unless this node sees what the leading process sees.

    Without the raw data, every input would be a missing file, and go to the ledger.
    """
    host = platform.node()
    check_libraries(leader.libraries, host)
    if not all((leader.job.root / name).exists() for name in leader.names):
        do = "mount it on every node under the same path"
        raise UserError("a node does not see the raw data", where=f"{leader.job.root} on {host}", do=do)
    try:
        same = leader.store.read(PLAN) == leader.plan
    except FileNotFoundError:
        same = False
    if not same:
        do = "write to a file system that every node mounts under the same path, or to an object store"
        raise UserError("a node does not see the shard set", where=f"{leader.store} on {host}", do=do)
