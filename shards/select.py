"""Some samples of a shard set as a set of their own: held-out parts, and small sets out of large ones.

What is chosen follows from a hash of each sample's own name: it stays chosen when data is added. Bytes are copied as
they stand.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.archive import ShardWriter
from shards.errors import UserError
from shards.groups import Group, group_name, groups_of
from shards.lossy import ratios_of
from shards.manifest import Manifest, sha256
from shards.reader import ShardSet
from shards.rewrite import Part, checked_bytes, read_checked_ledger, rewrite


def split(folder: Path, out: Path, share: float, by: Group, shard_bytes: int) -> tuple[Manifest, Manifest]:
    """Cut the set in `folder` in two, `out/NAME-train` and `out/NAME-val`; return their manifests.

    Args:
        share: of the groups, 0 to 1, that go to val: those whose SHA-256 lies below it.
        shard_bytes: size that a tar should not exceed.

    Raises:
        UserError: a part without samples, and whatever `rewrite` raises.
    """
    source = ShardSet(folder)
    read_checked_ledger(source)
    below, objects = np.zeros(len(source), np.bool_), np.zeros(len(source), np.int64)
    for position in tqdm(range(len(source)), unit="sample", desc="names", mininterval=0.5):
        meta = source.sample(position)[0]
        name = group_name(source.key(position), str(meta.get("path", "")), len(meta["frames"]), by)
        below[position] = _hash(name) < share
        objects[position] = len(meta["objects"])
    parts = {"train": np.flatnonzero(~below), "val": np.flatnonzero(below)}
    for name, positions in parts.items():
        if not len(positions):
            met, wanted = f"no sample in {name}", "some in both parts"
            do = "take another --share, or hold out smaller groups (--by)"
            raise UserError("nothing to split", where=str(folder), met=met, wanted=wanted, do=do)
    name = folder.resolve().name
    said = f"share {share:g} by {by}"
    train, val = (
        _copy(source, out / f"{name}-{part}", positions, int(objects[positions].sum()), f"{part}, {said}", shard_bytes)
        for part, positions in parts.items()
    )
    return train, val


def sample(folder: Path, out: Path, count: int, seed: int, shard_bytes: int) -> Manifest:
    """Write `count` samples of the set in `folder`, chosen at random, as the set `out`; return its manifest.

    With another `count` and the same seed, the larger choice holds the smaller one.

    Raises:
        UserError: fewer samples than that, and whatever `rewrite` raises.
    """
    source = ShardSet(folder)
    read_checked_ledger(source)
    if count > len(source):
        met, wanted = f"{len(source)} samples", f"at least {count}"
        raise UserError("too few samples", where=str(folder), met=met, wanted=wanted)
    hashes = np.fromiter((_hash(f"{seed} {key.decode()}") for key in source.index["key"]), np.float64, len(source))
    chosen = np.sort(np.argsort(hashes, kind="stable")[:count])
    objects = sum(len(source.sample(int(position))[0]["objects"]) for position in chosen)
    return _copy(source, out, chosen, objects, f"{count} samples, seed {seed}", shard_bytes)


def _hash(name: str) -> float:
    """Evenly spread over 0 (with) to 1 (without)."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _copy(
    source: ShardSet, out: Path, positions: NDArray[np.int64], objects: int, how: str, shard_bytes: int
) -> Manifest:
    """Copy the samples at `positions`, of so many objects, into the set `out`."""
    starts, room = [], 0
    for i, size in enumerate(source.index["size"][positions]):
        if size > room:
            starts.append(i)
            room = shard_bytes
        room -= int(size)
    name = source.manifest.source
    parts = [Part(f"{name}-{i:06d}.tar", tar) for i, tar in enumerate(np.split(positions, starts[1:]))]
    target = replace(
        source.manifest,
        selection=f"{how}; of {len(source)} samples, manifest {sha256(source.manifest.to_bytes())[:16]}",
        inputs=len(positions),
        samples=len(positions),
        objects=objects,
        left_out={},
        notes={},
        ledger_sha256=sha256(b""),
    )

    def put(writer: ShardWriter, position: int) -> None:
        meta, members = source.sample(position)
        data, row = checked_bytes(source, position), source.index[position]
        lost = ratios_of(meta, [field for field in members if field.is_picture], bool(source.manifest.psnr))
        groups = groups_of(source.key(position), str(meta.get("path", "")), len(meta["frames"]))
        writer.copy(source.key(position), data, int(row["texts"]), int(row["regions"]), lost, groups)

    return rewrite(source, out, target, b"", parts, put)
