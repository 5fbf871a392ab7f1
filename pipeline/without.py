"""Inputs that other shard sets hold: `shard --without` leaves them out, so that new files make a set of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.raw import RawInput
from shards.errors import UserError
from shards.format import MANIFEST, key_for
from shards.reader import ShardSet
from shards.sets import find_sets, open_sets
from shards.storage.protocols import is_url

OPTION = "without"
"""Name of the option that plans and manifests state."""
_HASH = 16  # hexadecimal digits at the end of a key: the hash of the input's path
_BLOCK = 1 << 16  # keys at a time
NewestTime = Callable[[str], float]
"""Returns the newest time, in s, of the files of an input."""


@dataclass(frozen=True)
class Remaining:
    """The inputs that no other set holds."""

    inputs: list[RawInput]
    option: dict[str, Any]
    """For the manifest: the number of `inputs` left out, and how many of them each set holds, by its plan."""
    remarks: tuple[str, ...]
    """Lines for the user."""


def sets_besides(paths: Sequence[str], out: str) -> tuple[str, ...]:
    """Return the sets that `paths` name (see `shards.sets.find_sets`), without the one at `out`.

    Raises:
        UserError: nothing matches a pattern.
    """
    return tuple(path for path in find_sets(paths) if _place(path) != _place(out))


def _place(path: str) -> str:
    return path.rstrip("/") if is_url(path) else str(Path(path).resolve())


def leave_out_held(inputs: list[RawInput], source: str, paths: Sequence[str], newest: NewestTime) -> Remaining:
    """Leave out the inputs that the sets at `paths` hold as samples.

    An input is known by its path, relative to the root of its source. A set does not record the sizes of its inputs, so
    an input that changed under its old path is left out, too; those newer than the set are counted in a remark. Inputs
    in a set's ledger are not held: they are tried again.

    Args:
        source: name of the source; sets of other sources hold none of its inputs.
        newest: of the files of an input.

    Raises:
        UserError: a set cannot be opened, or nothing is left.
    """
    numbers = _numbers(key_for(item.path) for item in inputs)
    left_out = np.zeros(len(inputs), np.bool_)
    plans: dict[str, int] = {}
    remarks = []
    for shards in open_sets(paths):
        manifest = shards.manifest
        name = getattr(shards, "url", shards.folder)
        if manifest.source != source:
            remarks.append(f"{name}: a set of {manifest.source}, not of {source}; it holds no input of this run")
            continue
        held = np.isin(numbers, held_numbers(shards))
        plans[manifest.plan] = plans.get(manifest.plan, 0) + int((held & ~left_out).sum())
        left_out |= held
        remark = f"{int(held.sum()):,} of {len(inputs):,} inputs are in {name}, and are left out"
        if changed := _newer(shards, [inputs[n].path for n in np.flatnonzero(held).tolist()], newest):
            remark += f"; the files of {changed:,} of them are newer than that set"
        remarks.append(remark)
    if left_out.all():
        do = "add files, or leave --without out"
        met = f"all {len(inputs):,} inputs are in the sets of --without"
        raise UserError("no new input", where=source, met=met, wanted="some that no other set holds", do=do)
    kept = [inputs[n] for n in np.flatnonzero(~left_out).tolist()]
    option = {"inputs": int(left_out.sum()), "plans": dict(sorted(plans.items()))}
    return Remaining(kept, option, tuple(remarks))


def held_numbers(shards: ShardSet) -> NDArray[np.uint64]:
    """Return the numbers of the inputs of a set's samples, (N,): the hashes of their paths."""
    keys = shards.index["key"]
    blocks = (keys[begin : begin + _BLOCK].tolist() for begin in range(0, len(keys), _BLOCK))
    return np.concatenate([_numbers(key.decode("ascii", "replace") for key in block) for block in blocks])


def numbers_of(paths: Iterable[str]) -> NDArray[np.uint64]:
    """Return the numbers of inputs, as of `held_numbers`, by their paths."""
    return _numbers(map(key_for, paths))


def _numbers(keys: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter((int(key[-_HASH:], 16) for key in keys), np.uint64)


def _newer(shards: ShardSet, paths: list[str], newest: NewestTime) -> int:
    """Return how many of the inputs have files that are newer than a set in a folder of this machine."""
    if hasattr(shards, "url"):
        return 0
    written = os.stat(shards.folder / MANIFEST).st_mtime
    return sum(newest(path) >= written for path in paths)
