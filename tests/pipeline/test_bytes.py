"""The bytes that sharding writes are those of earlier releases: digests of small sets, kept in `digests.json`.

`python -m tests.pipeline.test_bytes` writes that file again: after a change of the format, and only then.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.codec import GRADIENT, ZSTD_VERSION, zstd
from shards.table import TABLE
from shards.table_list import LIST, PICTURES
from tests.layouts import CASES
from tests.pipeline.built import put

DIGESTS = Path(__file__).with_name("digests.json")
SOURCES = ("folder", "refcocog", "ref-davis")
CODECS = ("gradient", "zstd", "raw")
COMPRESSED_COLUMNS = {"offset", "size", "crc32"}
"""Columns of the index that depend on how well zstd compresses."""
Cli = Callable[..., subprocess.CompletedProcess[str]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def decompressed(data: bytes) -> bytes:
    """Every zstd frame of `data`, decoded; what is no zstd frame as it is."""
    parts = []
    if data.startswith(GRADIENT):
        parts.append(GRADIENT)
        data = data[len(GRADIENT) :]
    while data.startswith(b"\x28\xb5\x2f\xfd"):
        decoder = zstd.ZstdDecompressor()
        parts.append(decoder.decompress(data))
        data = decoder.unused_data
    return b"".join(parts) + data


def tar_digest(file: Path) -> str:
    """Digest of the members in order: their headers but for size and checksum, and their decoded content."""
    total = hashlib.sha256()
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            head = (member.name, member.mode, member.uid, member.gid, member.mtime, member.uname, member.gname)
            stored = tar.extractfile(member)
            assert stored is not None
            total.update(repr(head).encode() + decompressed(stored.read()))
    return total.hexdigest()[:32]


def index_digest(file: Path, whole: bool) -> str:
    if whole:
        return sha256(file.read_bytes())
    index = np.load(file)
    return sha256(b"".join(index[name].tobytes() for name in index.dtype.names if name not in COMPRESSED_COLUMNS))


def without_parts(note: bytes) -> bytes:
    """A shard's note as older releases wrote it."""
    return json.dumps(
        {name: value for name, value in json.loads(note).items() if name != "parts"}, sort_keys=True
    ).encode()


def described(folder: Path, plan: dict[str, Any], notes: dict[str, bytes], codec: str) -> dict[str, Any]:
    """Return digests of a finished set, of its plan and of the notes of its shards.

    Masks are compressed with zstd whatever the codec: where this zstd is another one than that which wrote the
    digests, files that hold compressed sizes are compared without them. Tables, whose bytes depend on pyarrow, and
    their parts in the notes are left out.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for shard in manifest["shards"]:
        shard.update(bytes=0, sha256="")
    manifest.update(index_sha256="", manifest_sha256="")
    tars = sorted(folder.glob("*.tar"))
    found: dict[str, Any] = {
        "plan": {**plan, "libraries": sorted(plan["libraries"])},
        "manifest": manifest,
        "ledger": sha256((folder / "ledger.jsonl").read_bytes()),
        "index": index_digest(folder / "index.npy", whole=False),
        "members": {tar.name: tar_digest(tar) for tar in tars},
    }
    tables = (LIST, TABLE, PICTURES)
    if codec == "raw":
        found["with this zstd"] = {
            "files": {
                path.name: sha256(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name not in tables
            },
            "notes": {name: sha256(without_parts(data)) for name, data in notes.items()},
        }
    return found


def shard(cli: Cli, source: str, codec: str, root: Path, out: Path) -> dict[str, Any]:
    """Shard a small layout as one task of one, and merge: so the plan and the notes can be read in between."""
    arguments = ["shard", "--source", source, "--root", root, "--out", out, "--codec", codec, *CASES[source].options]
    done = cli(
        *arguments, "--shard-size", "1B", "--max-bad", "1", "--workers", "1", "--task-index", "0", "--task-count", "1"
    )
    assert done.returncode == 0, done.stderr
    work = out / source / ".work"
    plan = json.loads((work / "plan").read_bytes())
    notes = {path.name: path.read_bytes() for path in sorted(work.glob(f"{source}-*.json"))}
    merged = cli("merge", out / source, "--max-bad", "1")
    assert merged.returncode == 0, merged.stderr
    return described(out / source, plan, notes, codec)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    for source in SOURCES:
        CASES[source].write(folder / source)
    return {source: folder / source for source in SOURCES}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_bytes_are_those_of_earlier_releases(here, layouts, tmp_path, source, codec):
    kept = json.loads(DIGESTS.read_text("utf-8"))
    expected = kept[f"{source}, {codec}"]
    found = shard(here, source, codec, layouts[source], tmp_path)
    if kept["zstd"] != ZSTD_VERSION:
        expected.pop("with this zstd", None)
        found.pop("with this zstd", None)
    assert found["plan"].pop("sample_bytes") == pytest.approx(expected["plan"].pop("sample_bytes"), rel=0.1)
    assert found == expected


def test_an_unfinished_set_of_an_earlier_release_goes_on(here, layouts, tmp_path):
    """The saved plan decides how many inputs a shard has; the probe would say 1."""
    plan = json.loads(DIGESTS.read_text("utf-8"))["folder, raw"]["plan"]
    plan["libraries"] = {name: version(name) for name in plan["libraries"] if name != "zstd"} | {"zstandard": "0.25.0"}
    put(tmp_path / "folder/.work/plan", {**plan, "per_shard": 3})
    arguments = [
        "--source",
        "folder",
        "--root",
        layouts["folder"],
        "--out",
        tmp_path,
        "--codec",
        "raw",
        "--workers",
        "1",
    ]
    done = here("shard", *arguments, "--shard-size", "1B", "--max-bad", "1")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["folder-000000.tar"]
    assert json.loads((tmp_path / "folder/manifest.json").read_bytes())["samples"] == 2


def _process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "cli.py", *map(str, arguments)], capture_output=True, text=True)


def _write(folder: Path) -> None:
    kept: dict[str, Any] = {"zstd": ZSTD_VERSION}
    for source in SOURCES:
        CASES[source].write(folder / source)
        for codec in CODECS:
            kept[f"{source}, {codec}"] = shard(_process, source, codec, folder / source, folder / codec)
    DIGESTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        _write(Path(name))
