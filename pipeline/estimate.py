"""Estimate of a sharding run before it begins, from some samples that are made and encoded, and not written."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset import RawDataset, spread_inputs
from pipeline.finish import no_sample
from pipeline.plan import Plan, encoded_bytes, trial_plan
from pipeline.request import Request
from pipeline.workspace import Workspace
from shards.errors import BadInput, UserError
from shards.size import size_text
from shards.storage.store import LocalFolder
from shards.table_file import KINDS

_SET_FILES = 4 + len(KINDS)  # manifest, index, ledger, list of tables, tables


@dataclass(frozen=True)
class Amount:
    """A sum over all inputs, estimated from some."""

    total: float
    error: float
    """Half of the total's 95 % interval; 0 where all inputs were probed."""

    @classmethod
    def from_probe(cls, probed: list[float], inputs: int) -> Amount:
        """Estimate the sum over `inputs` inputs from the values of those probed."""
        missing = 1 - len(probed) / inputs
        deviation = statistics.stdev(probed) if len(probed) > 1 else 0.0
        return cls(statistics.fmean(probed) * inputs, 1.96 * deviation * inputs * (missing / len(probed)) ** 0.5)


@dataclass(frozen=True)
class Estimate:
    """Estimate of a whole run."""

    inputs: int
    probed: int
    samples: Amount
    bytes: Amount
    seconds: Amount
    """By one process that has a core for itself."""
    shards: int
    remarks: tuple[str, ...] = ()
    """As of `RawDataset`."""

    @property
    def files(self) -> int:
        return self.shards + _SET_FILES


def estimate(request: Request, most: int = 64) -> Estimate:
    """Make and encode up to `most` samples, spread over the inputs, and write nothing.

    Raises:
        UserError: none of them can be made.
    """
    with trial_plan(request) as (dataset, plan):
        return _probe(dataset, plan, most)


def _probe(dataset: RawDataset, plan: Plan, most: int) -> Estimate:
    probe = spread_inputs(dataset.inputs, most)
    samples: list[float] = []
    sizes: list[float] = []
    seconds: list[float] = []
    left_out: list[BadInput] = []
    for item in probe:
        started = time.perf_counter()
        try:
            size = encoded_bytes(dataset.job, item.path)
        except BadInput as error:
            size = 0
            left_out.append(error)
        seconds.append(time.perf_counter() - started)
        sizes.append(float(size))
        samples.append(float(size > 0))
    if len(left_out) == len(probe):
        reasons = Counter(error.what for error in left_out)
        raise no_sample(reasons, str(dataset.job.root), str(left_out[0]), plan.options)
    return Estimate(
        inputs=plan.inputs,
        probed=len(probe),
        samples=Amount.from_probe(samples, plan.inputs),
        bytes=Amount.from_probe(sizes, plan.inputs),
        seconds=Amount.from_probe(seconds, plan.inputs),
        shards=len(plan.shards),
        remarks=dataset.remarks,
    )


def free_bytes(folder: Path) -> int:
    """Return what a user may still write on the disk that `folder` is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(plan: Plan, workspace: Workspace) -> None:
    """Raise `UserError` where the disk will not hold what is still to be written.

    It goes by the plan's own probe, so that it costs nothing. Where the run goes on, shards that are done need no room;
    where it begins anew, they give theirs. An object store is not asked.
    """
    if not isinstance(workspace.store, LocalFolder):
        return
    folder = workspace.store.path
    free = free_bytes(folder)
    needed = plan.inputs * plan.sample_bytes
    if needed <= free:
        return
    saved = workspace.saved_plan()
    if saved and saved.digest == plan.digest:
        done = [shard for shard, _ in workspace.notes(plan, plan.shards)]
        needed = (plan.inputs - plan.count(done)) * plan.sample_bytes
    else:
        free += sum(tar.stat().st_size for tar in folder.glob("*.tar"))
    if needed > free:
        raise UserError(
            "the disk will not hold it",
            where=str(folder),
            met=f"{size_text(free)} free",
            wanted=f"about {size_text(needed)}",
            do="make room, give another --out, a smaller --limit, or begin all the same with --force",
        )
