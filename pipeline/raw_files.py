"""Whether raw files have changed since shards were made of them.

Sizes of files are part of the plan. Times are not, for a set's bytes must not depend on the machine. They are compared
twice:

- in an unfinished set, the sizes and times of the files of each shard are kept (`stamp`); where one of them is another
  now, the shard is written again.
- in a finished set, inputs whose files are newer than the manifest are made again and compared with the set's samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.boundary import input_errors, read_sample
from pipeline.dataset import Job, RawDataset, spread_inputs
from pipeline.raw import RawInput
from pipeline.records import path_bytes
from shards.archive import encode_sample
from shards.errors import BadInput, UserError
from shards.format import LEDGER, MANIFEST, key_for
from shards.manifest import Manifest, read_ledger
from shards.program import command
from shards.reader import ShardSet, decode_field, stored_fields

_COMPARED = 16  # inputs of a finished set


def stamp(dataset: RawDataset, inputs: Iterable[RawInput]) -> str:
    """Return the hash of the names, sizes and times of all files that decide the bytes of a shard."""
    total = hashlib.sha256()
    for item in inputs:
        for name, state in dataset.states.of_input(item.path):
            total.update(path_bytes(f"{name}\0{state.bytes}\0{state.modified}\n"))
    return total.hexdigest()[:32]


def check_unchanged(folder: Path, dataset: RawDataset, manifest: Manifest) -> str:
    """Make inputs whose raw files are newer than the finished set in `folder` again, and compare their samples.

    Up to 16 of them are made, spread over all.

    Returns:
        A remark for the user where not all of them were made; else "".

    Raises:
        UserError: a sample would be another one now.
    """
    written = (folder / MANIFEST).stat().st_mtime
    states = dataset.states
    newer = [item for item in dataset.inputs if any(s.newest >= written for _, s in states.of_input(item.path))]
    chosen = spread_inputs(newer, _COMPARED)
    for item in chosen:
        if (difference := _difference(folder, dataset.job, item)) is not None:
            raise UserError(
                "a raw file has changed since this set was finished",
                where=str(folder),
                met=f"{item.path}: {difference}",
                wanted="the sample that the set holds",
                do="put the file back, or write the set again with --overwrite",
            )
    if len(chosen) == len(newer):
        return ""
    remark = f"{len(newer):,} inputs have raw files that are newer than the set; {len(chosen)} of them were made again"
    check = command(f"verify-shard {folder} --against {dataset.job.root}")
    return f"{folder}: {remark}, and are the same; {check} compares all"


def _difference(folder: Path, job: Job, item: RawInput) -> str | None:
    """Make the sample of an input again. Return how it differs from the set's; None where it is the same."""
    shards = ShardSet(folder)
    positions = np.flatnonzero(shards.index["key"] == key_for(item.path).encode())
    try:
        sample, _ = read_sample(job, item.path)
        with input_errors(job.root, item.path):
            members = {name.partition(".")[2]: memoryview(data) for name, data in encode_sample(sample, job.codec)}
    except BadInput as error:
        known = any(line.path == item.path and line.reason == error.what for line in read_ledger(folder))
        return None if known else f"cannot become a sample now: {error.what}"
    if not len(positions):
        return f"becomes a sample now, and is in {LEDGER}"
    meta, stored = shards.sample(int(positions[0]))
    now = stored_fields(sample.meta, members)
    if any(meta.get(name) != value for name, value in _plain(sample.meta).items()) or now.keys() != stored.keys():
        return "other annotations"
    recipe = shards.recipe
    for field, data in now.items():
        if data == stored[field]:
            continue
        # Other bytes may be the same tensor: another version of zstd compresses otherwise.
        values = decode_field(field, data, recipe, as_stored=True)
        if not np.array_equal(values, decode_field(field, stored[field], recipe, as_stored=True)):
            return f"another {field}"
    return None


def _plain(meta: object) -> dict[str, object]:
    """Return `meta` as it is after JSON: lists for tuples, texts for keys."""
    plain: dict[str, object] = json.loads(json.dumps(meta))
    return plain
