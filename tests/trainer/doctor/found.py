"""Findings of the checks, and shards with a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from shards.manifest import pack_manifest, sha256
from shards.reader import ShardSet
from tests.trainer.runs import SMALL
from trainer.doctor.checks import examine

GOOD = [*SMALL, "steps=4", "batch_size=1", "data.holdout=0.3", "eval.every=2"]


def found(arguments: list[str], level: str = "fail") -> list[tuple[str, str]]:
    return [(f.check, f.text) for f in examine(arguments) if f.level == level]


def damage(sav_set: Path, folder: Path, how: str) -> Path:
    """Copy a valid set and damage it in one way."""
    shutil.copytree(sav_set, folder)
    tar = folder / "sav-000000.tar"
    index = folder / "index.npy"
    manifest = folder / "manifest.json"
    if how == "missing":
        tar.unlink()
    elif how == "short":
        tar.write_bytes(tar.read_bytes()[:-10_240])
    elif how == "index":
        data = bytearray(index.read_bytes())
        data[-1] ^= 1
        index.write_bytes(data)
    elif how == "texts":
        rows = np.load(index)
        rows["texts"][1:] = 1
        np.save(index, rows)
        body = json.loads(manifest.read_text())
        body |= {"source": "folder", "plan": "1" * 64, "index_sha256": sha256(index.read_bytes())}
        manifest.write_bytes(pack_manifest(body))
    elif how == "pixels":
        row = ShardSet(sav_set).index[0]
        data = bytearray(tar.read_bytes())
        data[int(row["offset"]) + 3000 : int(row["offset"]) + 400_000] = bytes(397_000)
        tar.write_bytes(data)
    else:
        body = json.loads(manifest.read_text())
        body["recipe"]["image_filter"] = "bicubic"
        values = {k: v for k, v in body["recipe"].items() if k != "name"}
        body["recipe_hash"] = sha256(json.dumps(values, sort_keys=True).encode())[:16]
        body["plan"] = "0" * 64
        manifest.write_bytes(pack_manifest(body))
    return folder
