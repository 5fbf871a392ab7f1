"""Shard sets for `benchmarks.loading`: of a few photographs in SA-1B's layout, and of many times as many samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.raw_files import sa1b, sav
from pipeline.request import make_request
from pipeline.run import run
from shards.checksum import file_sha256
from shards.format import CODECS, INDEX, LOSSY, MANIFEST, Codec
from shards.manifest import pack_manifest
from shards.recode import recode

EXACT: list[Codec] = [codec for codec in CODECS if codec not in LOSSY]
_SHARD_BYTES = 32 << 20


def write(root: Path, samples: int, repeats: int) -> None:
    """Below `root`, where it is not there yet: raw files, and by codec two sets of `repeats` times `samples`.

    Each repeat has tars of its own, so that nothing stays in the processor's cache that others have to read anew.
    `CODEC` is mapped as long as its readers live; `cold-CODEC` in turns alone: only pages that nobody maps can be
    dropped. `once-CODEC` holds each sample once.
    """
    if (root / "done").exists():
        return
    sa1b(root / "sa1b", samples)
    sav(root / "sav", samples // 2)
    first, *others = EXACT
    run(make_request("sa1b", root / "sa1b", codec=first, shard_bytes=_SHARD_BYTES), root / f"once-{first}", 2, 0.0)
    for codec in EXACT:
        if codec in others:
            recode(root / f"once-{first}", root / f"once-{codec}", codec, 2)
        once = root / f"once-{codec}"
        shards = len(json.loads((once / MANIFEST).read_text())["shards"])
        for name in (codec, f"cold-{codec}"):
            repeat(once, root / name, repeats * shards, shutil.copyfile)
    (root / "done").touch()


def repeat(source: Path, folder: Path, count: int, copy: Callable[[Path, Path], Any] | None = None) -> Path:
    """A set of `count` tars: those of `source`, round and round, under other names; links where no `copy` is given."""
    folder.mkdir()
    body = json.loads((source / MANIFEST).read_text())
    rows = np.load(source / INDEX)
    parts = []
    shards = []
    for number in range(count):
        which = number % len(body["shards"])
        info = {**body["shards"][which], "name": f"sa1b-{number:06d}.tar"}
        shards.append(info)
        if copy:
            copy(source / body["shards"][which]["name"], folder / info["name"])
        else:
            (folder / info["name"]).hardlink_to(source / body["shards"][which]["name"])
        part = rows[rows["shard"] == which]
        part["shard"] = number
        parts.append(part)
    index = np.concatenate(parts)
    np.save(folder / INDEX, index)
    changed = {"shards": shards, "samples": len(index), "index_sha256": file_sha256(folder / INDEX)}
    (folder / MANIFEST).write_bytes(pack_manifest(body | changed))
    return folder
