"""Copying some samples of a shard set into a set of their own: held-out parts, and small sets out of large ones.

Samples are chosen by a hash of their names, so the choice stays when data is added. Their bytes are copied unchanged.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.archive import ShardWriter
from shards.errors import UserError
from shards.format import version_of
from shards.groups import Group, group_name
from shards.lossy import recorded_psnr
from shards.manifest import Manifest, sha256
from shards.printable import printable
from shards.reader import ShardSet
from shards.rewrite import PlannedTar, checked_bytes, read_checked_ledger, rewrite
from shards.where import choose_of


def split(
    folder: Path, out: Path, share: float, by: Group, shard_bytes: int, where: str | None = None
) -> tuple[Manifest, Manifest]:
    """Split the set in `folder` into `out/NAME-train` and `out/NAME-val`; return their manifests.

    Args:
        share: share of the groups that goes to val, 0 to 1: those whose hash is below it.
        by: groups whose samples stay together.
        shard_bytes: largest size of a tar.
        where: take samples with an object that this condition chooses. They keep all of their objects.

    Raises:
        UserError: a part without samples, or as `rewrite`.
    """
    source = ShardSet(folder)
    read_checked_ledger(source)
    in_val = np.zeros(len(source), np.bool_)
    objects = np.zeros(len(source), np.int64)
    for position in tqdm(range(len(source)), unit="sample", desc="names", mininterval=0.5):
        meta = source.sample(position)[0]
        name = group_name(source.key(position), str(meta.get("path", "")), len(meta["frames"]), by)
        in_val[position] = _hash(name) < share
        objects[position] = len(meta["objects"])
    is_taken, condition = _taken(source, where)
    parts = {"train": np.flatnonzero(is_taken & ~in_val), "val": np.flatnonzero(is_taken & in_val)}
    for name, positions in parts.items():
        if not len(positions):
            raise UserError(
                "nothing to split",
                where=str(folder),
                met=f"no sample in {name}",
                wanted="some in both parts",
                do="take another --share, or hold out smaller groups (--by)",
            )
    name = folder.resolve().name
    choice = f"share {share:g} by {by}{condition}"
    train, val = (
        _copy(source, out / f"{name}-{part}", positions, objects[positions], f"{part}, {choice}", shard_bytes)
        for part, positions in parts.items()
    )
    return train, val


def sample(folder: Path, out: Path, count: int, seed: int, shard_bytes: int, where: str | None = None) -> Manifest:
    """Copy `count` random samples of the set in `folder` into the set `out`; return its manifest.

    With the same seed, a larger choice contains the smaller ones.

    Args:
        where: take them of those with an object that this condition chooses. They keep all of their objects.

    Raises:
        UserError: the set has fewer samples, or as `rewrite`.
    """
    source = ShardSet(folder)
    read_checked_ledger(source)
    is_taken, condition = _taken(source, where)
    positions = np.flatnonzero(is_taken)
    if count > len(positions):
        met = f"{len(positions)} samples{condition}"
        raise UserError("too few samples", where=str(folder), met=met, wanted=f"at least {count}")
    keys = source.index["key"][positions]
    hashes = np.fromiter((_hash(f"{seed} {key.decode()}") for key in keys), np.float64, len(keys))
    chosen = positions[np.sort(np.argsort(hashes, kind="stable")[:count])]
    objects = np.array([len(source.sample(int(position))[0]["objects"]) for position in chosen])
    return _copy(source, out, chosen, objects, f"{count} samples, seed {seed}{condition}", shard_bytes)


def _taken(source: ShardSet, where: str | None) -> tuple[NDArray[np.bool_], str]:
    """Return which samples have an object that the condition chooses: (N,); and the words for the manifest."""
    chosen = choose_of(source, where)
    if chosen is None:
        return np.ones(len(source), np.bool_), ""
    tqdm.write(printable(str(chosen)), file=sys.stderr)
    return chosen.counts > 0, f", where {chosen.condition}"


def _hash(name: str) -> float:
    """Return a hash of `name`, uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _copy(
    source: ShardSet,
    out: Path,
    positions: NDArray[np.int64],
    objects: NDArray[np.int64],
    selection: str,
    shard_bytes: int,
) -> Manifest:
    """Copy the samples at `positions` into the set `out`; `objects` has the number of objects of each."""
    starts = []
    room = 0
    for i, size in enumerate(source.index["size"][positions]):
        if size > room:
            starts.append(i)
            room = shard_bytes
        room -= int(size)
    name = source.manifest.source
    tars = [
        PlannedTar(f"{name}-{i:06d}.tar", tar_positions)
        for i, tar_positions in enumerate(np.split(positions, starts[1:]))
    ]
    target = replace(
        source.manifest,
        version=1 if source.manifest.version == 1 else version_of(objects),
        selection=f"{selection}; of {len(source)} samples, manifest {sha256(source.manifest.to_bytes())[:16]}",
        inputs=len(positions),
        samples=len(positions),
        objects=int(objects.sum()),
        left_out={},
        notes={},
        ledger_sha256=sha256(b""),
    )

    def copy_sample(writer: ShardWriter, position: int) -> None:
        meta, members = source.sample(position)
        data = checked_bytes(source, position)
        row = source.index[position]
        ratios = recorded_psnr(meta, [field for field in members if field.is_picture], bool(source.manifest.psnr))
        writer.copy(source.key(position), data, meta, int(row["texts"]), int(row["regions"]), ratios)

    return rewrite(source, out, target, b"", tars, copy_sample)
