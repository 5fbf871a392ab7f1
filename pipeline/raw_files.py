"""The raw files that decide the bytes of samples: their sizes are in the plan, their times are compared on the way.

A set's bytes must not depend on the machine, so times are in nothing that is kept in it. They are used twice:

- of an unfinished set, each shard that stands was made of files of known sizes and times (`stamp`); where one of them
  has others now, the shard is written again.
- of a finished set, inputs whose files are newer than its manifest are made again and compared with what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.boundary import input_errors, read_sample
from pipeline.raw import RawInput
from pipeline.records import open_records, path_bytes
from shards.archive import encode_sample
from shards.errors import BadInput, UserError
from shards.format import LEDGER, MANIFEST, key_for
from shards.manifest import Manifest, read_ledger
from shards.program import command
from shards.reader import ShardSet, decode_field, stored_fields

if TYPE_CHECKING:
    from pipeline.plan import Job, Plan

State = tuple[int, int, float]
"""(bytes, time of its content in ns, newest of all its times in s) of a file; (-1, 0, 0) where there is none."""
_COMPARED = 16  # inputs of a finished set


def states(job: Job, path: str) -> Iterator[tuple[str, State]]:
    """Name (relative to the root) and state of each file that decides the sample of the input at `path`."""
    names: list[str] = []
    try:
        with input_errors(job.root, path):
            names = [*dict.fromkeys(job.source.files(path, open_records(job.records).each_part(path)))]
    except BadInput:
        pass  # it goes to the ledger when its turn comes, whatever its files are
    for name in names:
        yield name, _state(str(job.root), name)


@lru_cache(maxsize=1 << 12)  # many inputs lie in one tar, or one video
def _state(root: str, name: str) -> State:
    try:
        found = os.stat(os.path.join(root, name))
    except (OSError, ValueError):
        return -1, 0, 0.0
    return found.st_size, found.st_mtime_ns, max(found.st_mtime, found.st_ctime)


def forget_states() -> None:
    """Ask the file system again from here on."""
    _state.cache_clear()


def stamp(plan: Plan, shard: int) -> str:
    """Hash of the names, sizes and times of all files that decide the bytes of a shard."""
    total = hashlib.sha256()
    for item in plan.part(shard):
        for name, (size, changed, _) in states(plan.job, item.path):
            total.update(path_bytes(f"{name}\0{size}\0{changed}\n"))
    return total.hexdigest()[:32]


def check_unchanged(folder: Path, plan: Plan, manifest: Manifest) -> str:
    """Compare the finished set in `folder` with the raw files that are newer than it; a remark for the user, or "".

    Up to 16 of their inputs, spread over all, are made again.

    Raises:
        UserError: a sample would become another one now.
    """
    written = (folder / MANIFEST).stat().st_mtime
    newer = [item for item in plan.inputs if any(state[2] >= written for _, state in states(plan.job, item.path))]
    chosen = [newer[i * len(newer) // _COMPARED] for i in range(_COMPARED)] if len(newer) > _COMPARED else newer
    for item in chosen:
        if (what := _difference(folder, plan.job, item)) is not None:
            raise UserError(
                "a raw file has changed since this set was finished",
                where=str(folder),
                met=f"{item.path}: {what}",
                wanted="the sample that the set holds",
                do="put the file back, or write the set again with --overwrite",
            )
    if len(chosen) == len(newer):
        return ""
    met = f"{len(newer):,} inputs have raw files that are newer than the set; {len(chosen)} of them were made again"
    check = command(f"verify-shard {folder} --against {plan.job.root}")
    return f"{folder}: {met}, and are the same; {check} compares all"


def _difference(folder: Path, job: Job, item: RawInput) -> str | None:
    """Make an input again and say what it becomes, where that is not what the set has of it; else None."""
    shards = ShardSet(folder)
    places = np.flatnonzero(shards.index["key"] == key_for(item.path).encode())
    try:
        sample, _ = read_sample(job, item.path)
        with input_errors(job.root, item.path):
            members = {name.partition(".")[2]: memoryview(data) for name, data in encode_sample(sample, job.codec)}
    except BadInput as error:
        known = any(line.path == item.path and line.reason == error.what for line in read_ledger(folder))
        return None if known else f"cannot become a sample now: {error.what}"
    if not len(places):
        return f"becomes a sample now, and is in {LEDGER}"
    meta, stored = shards.sample(int(places[0]))
    now = stored_fields(sample.meta, members)
    if any(meta.get(name) != value for name, value in _plain(sample.meta).items()) or now.keys() != stored.keys():
        return "other annotations"
    recipe = shards.recipe
    for field, data in now.items():
        if data == stored[field]:
            continue
        met, wanted = (decode_field(field, one, recipe, as_stored=True) for one in (data, stored[field]))
        if not np.array_equal(met, wanted):
            return f"another {field}"
    return None


def _plain(meta: object) -> dict[str, object]:
    """Return `meta` as JSON gives it back: with lists for tuples and texts for keys."""
    plain: dict[str, object] = json.loads(json.dumps(meta))
    return plain
