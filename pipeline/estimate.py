"""What a sharding run will take, before it begins: from some samples that are made and encoded, and not written."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.boundary import input_errors, read_sample
from pipeline.finish import no_sample
from pipeline.plan import Plan
from pipeline.work import Work
from shards.archive import encode_sample
from shards.errors import BadInput, UserError
from shards.size import size_text
from shards.storage.store import LocalFolder

_SET_FILES = 3  # manifest, index, ledger
_MEMBER_BYTES = 1024  # of header and padding, on average less


@dataclass(frozen=True)
class Amount:
    """A sum over all inputs, told from some."""

    total: float
    error: float
    """Of the total: half of a 95 % interval; 0 where all inputs were probed."""

    @classmethod
    def of(cls, probed: list[float], inputs: int) -> Amount:
        missing = 1 - len(probed) / inputs
        deviation = statistics.stdev(probed) if len(probed) > 1 else 0.0
        return cls(statistics.fmean(probed) * inputs, 1.96 * deviation * inputs * (missing / len(probed)) ** 0.5)


@dataclass(frozen=True)
class Estimate:
    """Of the whole plan."""

    inputs: int
    probed: int
    samples: Amount
    bytes: Amount
    seconds: Amount
    """Of one process that has a core for itself."""
    shards: int

    @property
    def files(self) -> int:
        return self.shards + _SET_FILES


def estimate(plan: Plan, most: int = 64) -> Estimate:
    """Make and encode up to `most` samples, spread over the plan's inputs; `UserError` where none can be made."""
    count = min(most, len(plan.inputs))
    kept, sizes, seconds = [], [], []
    left_out: list[BadInput] = []
    for i in range(count):
        started = time.perf_counter()
        try:
            path = plan.inputs[i * len(plan.inputs) // count].path
            sample, _ = read_sample(plan.job, path)
            with input_errors(plan.job.root, path):
                blobs = [blob for _, blob in encode_sample(sample, plan.job.codec)]
        except BadInput as error:
            blobs = []
            left_out.append(error)
        seconds.append(time.perf_counter() - started)
        sizes.append(float(sum(len(blob) + _MEMBER_BYTES for blob in blobs)))
        kept.append(float(bool(blobs)))
    if len(left_out) == count:
        raise no_sample(
            Counter(error.what for error in left_out), str(plan.job.root), str(left_out[0]), plan.job.options
        )
    samples, size, time_taken = (Amount.of(probed, len(plan.inputs)) for probed in (kept, sizes, seconds))
    return Estimate(len(plan.inputs), count, samples, size, time_taken, shards=len(plan.shards))


def free_bytes(folder: Path) -> int:
    """What a user may still write on the disk that `folder` is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(plan: Plan, work: Work) -> None:
    """Raise `UserError` where the disk will not hold what is still to be written.

    By the plan's own probe, so that it costs nothing. What stands already counts as written where the run goes on, and
    as room where it begins anew. Nobody asks an object store.
    """
    if not isinstance(work.store, LocalFolder):
        return
    folder = work.store.path
    free, needed = free_bytes(folder), len(plan.inputs) * plan.sample_bytes
    if needed <= free:
        return
    if work.known_plan(plan.digest):
        stands = {shard for shard, _ in work.done(plan.outline, plan.shards)}
        needed = sum(len(plan.part(shard)) for shard in plan.shards if shard not in stands) * plan.sample_bytes
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
