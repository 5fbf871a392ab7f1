"""A small shard set that is changed and gets right checksums: what an attacker or a faulty tool writes.

With `tarfile`, `json` and numpy alone, so that the writer's own checks are not in the way.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from shards.errors import UserError
from shards.preview import preview
from shards.reader import ShardSet
from shards.select import sample
from shards.stats import measure_sets
from shards.verification import verify
from tests.conftest import without_tables

Members = dict[str, bytes]
"""Bytes of a sample's members in the tar's order, by the part of the member's name that follows the key."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
"""Any value that Python writes as JSON, sound or not."""


def members_of(tar: Path) -> tuple[str, Members]:
    """(key, members) of a tar of one sample."""
    with tarfile.open(tar) as opened:
        found = {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]
    return next(iter(found)).partition(".")[0], {name.partition(".")[2]: data for name, data in found.items()}


def write_tar(path: Path, key: str, members: Members, **header: Any) -> int:
    """Write a tar of one sample; return the bytes that the sample takes."""
    out = io.BytesIO()
    for name, data in members.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        for field, value in header.items():
            setattr(info, field, value)
        out.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    size = out.tell()
    out.write(bytes(1024))
    out.write(bytes(-out.tell() % 10240))
    path.write_bytes(out.getvalue())
    return size


def change_meta(members: Members, change: Callable[[dict[str, Any]], object]) -> Members:
    """The members with another JSON."""
    meta = json.loads(members["json"])
    change(meta)
    return {**members, "json": json.dumps(meta).encode()}


def change_sample(folder: Path, change: Callable[[Members], Members], **header: Any) -> Path:
    """Write the set's first tar, of one sample, again; return it."""
    tar = min(folder.glob("*.tar"))
    key, members = members_of(tar)
    size = write_tar(tar, key, change(members), **header)
    index = np.load(folder / "index.npy")
    index["size"][0] = size
    index["crc32"][0] = zlib.crc32(tar.read_bytes()[:size])
    np.save(folder / "index.npy", index)
    reseal(folder)
    return tar


def reseal(folder: Path, **changes: Any) -> None:
    """Make every checksum and size of the manifest right; `changes` are other values of it. Tables are removed."""
    without_tables(folder)
    body = json.loads((folder / "manifest.json").read_bytes())
    for shard in body["shards"]:
        data = (folder / shard["name"]).read_bytes()
        shard["bytes"] = len(data)
        shard["sha256"] = hashlib.sha256(data).hexdigest()
    for name in ("index", "ledger"):
        data = next(folder.glob(f"{name}.*")).read_bytes()
        body[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
    body |= changes
    body.pop("manifest_sha256", None)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")
    body["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(body))


def check_any_value(source: Path, tmp_path: Path, place: Sequence[str | int], value: Any) -> None:
    """Put `value` at a place of a sample's JSON in a copy of a set: no reader ends in anything but one line."""
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)

    def change(meta: Any) -> None:
        for step in place[:-1]:
            meta = meta[step]
        meta[place[-1]] = value

    change_sample(folder, lambda members: change_meta(members, change))
    verify([folder])
    shards = ShardSet(folder)
    for read in (
        lambda: shards[0],
        lambda: preview(folder, tmp_path / "page"),
        lambda: measure_sets([folder], 9),
        lambda: sample(folder, folder / "one", 1, 0, 1000),
    ):
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)
