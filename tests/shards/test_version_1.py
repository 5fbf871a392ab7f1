"""Sets of version 1 of the format stay readable: `version_1/` was written by a release that knew no other.

`folder` is a finished set of three samples, `work` what it had in `.work` before it was finished, and `read.json` the
SHA-256 of each array as that release read it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.run import merge
from shards.errors import UserError
from shards.format import VERSION
from shards.manifest import Manifest
from shards.preview import preview
from shards.reader import ShardSet, read_samples
from shards.recode import recode
from shards.select import sample, split
from shards.stats import measure_sets, table
from shards.table import TABLE
from shards.table_list import LIST, PICTURES
from shards.verification import verify
from tests.batches import make_loader
from tests.conftest import files_of, shard_sav

HERE = Path(__file__).parent / "version_1"
OLD = HERE / "folder"
WANTED: list[dict[str, str]] = json.loads((HERE / "read.json").read_bytes())


def digests(one: dict[str, Any]) -> dict[str, str]:
    arrays = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in one.items() if isinstance(v, np.ndarray)}
    return {"__key__": one["__key__"], **arrays}


def extensions(folder: Path) -> set[str]:
    found = set()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {name.split(".", 2)[2] for name in tar.getnames() if not name.endswith(".json")}
    return found


def test_a_set_of_version_1_reads_as_in_its_release():
    shards = ShardSet(OLD)
    assert [digests(shards[i]) for i in range(len(shards))] == WANTED
    in_order = [one for info in shards.manifest.shards for one in read_samples(OLD / info.name)]
    assert [digests(one) for one in in_order] == WANTED
    assert extensions(OLD) == {"up.zst", "bits.zst", "npy"} and shards.manifest.version == 1


def test_the_manifest_of_version_1_keeps_its_bytes():
    assert Manifest.read(OLD).to_bytes() == (OLD / "manifest.json").read_bytes()


def test_verify_stats_preview_and_training(tmp_path):
    report = verify([OLD])
    assert report.ok and (report.samples, report.objects) == (3, 4)
    assert "3 samples" in table(measure_sets([OLD], 10))
    assert preview(OLD, tmp_path / "page").read_text("utf-8").count("<img") == 3
    loader = make_loader([OLD], fields=("pixel_values1", "masks1"), batch_size=3, seed=0, threads=0)
    (batch,) = loader.epoch(0)
    assert sorted(batch.keys) == sorted(one["__key__"] for one in WANTED)


@pytest.mark.parametrize("codec", ["zstd", "raw"])
def test_recoding_writes_the_current_version(tmp_path, codec):
    manifest = recode(OLD, tmp_path / "new", codec)
    assert manifest.version == VERSION == 2 and verify([tmp_path / "new"]).ok
    shards = ShardSet(tmp_path / "new")
    assert [digests(shards[i]) for i in range(len(shards))] == WANTED
    assert extensions(tmp_path / "new") == {"npy", "bits"} | ({"up"} if codec == "zstd" else set())


def test_splits_and_samples_keep_version_1(tmp_path):
    sample(OLD, tmp_path / "two", 2, 0, 10**6)
    split(OLD, tmp_path, 0.5, "sample", 10**6)
    read = {}
    for name in ("two", "folder-train", "folder-val"):
        shards = ShardSet(tmp_path / name)
        assert shards.manifest.version == 1 and verify([tmp_path / name]).ok
        read[name] = {one["__key__"]: one for one in map(digests, map(shards.__getitem__, range(len(shards))))}
    expected = {one["__key__"]: one for one in WANTED}
    assert read["folder-train"] | read["folder-val"] == expected and len(read["two"]) == 2


def unfinished(place: Path) -> Path:
    """The unfinished set: all its tars, its plan and their notes."""
    place.mkdir()
    for tar in OLD.glob("*.tar"):
        shutil.copy(tar, place)
    shutil.copytree(HERE / "work", place / ".work")
    return place


def test_an_unfinished_run_of_version_1_is_merged(tmp_path):
    merge(str(unfinished(tmp_path / "folder")), 1)
    files = files_of(tmp_path / "folder")
    expected = files_of(OLD)
    assert files.keys() == expected.keys() | {TABLE, PICTURES, LIST}
    files = {name: files[name] for name in expected}
    assert {name for name in files if files[name] != expected[name]} == {"index.npy", "manifest.json"}  # groups are new
    assert verify([tmp_path / "folder"]).ok and ShardSet(tmp_path / "folder").manifest.version == 1


def test_an_unfinished_run_of_version_1_is_refused(tmp_path, sav_root):
    place = unfinished(tmp_path / "sav")
    with pytest.raises(
        UserError, match=r"an unfinished one of format version 1; finish it with the release that began"
    ):
        shard_sav(sav_root, place, limit=1)
    assert (place / ".work" / "plan").read_bytes() == (HERE / "work" / "plan").read_bytes()


def test_a_finished_set_of_the_same_inputs_is_left_alone(tmp_path, sav_root, monkeypatch):
    """Its plan is that of its version: the same command does not ask for the same set again."""
    monkeypatch.setattr("pipeline.plan.VERSION", 1)
    monkeypatch.setattr("pipeline.dataset.VERSION", 1)
    shard_sav(sav_root, tmp_path / "sav", limit=1)
    monkeypatch.undo()
    assert Manifest.read(tmp_path / "sav").version == 1
    before = files_of(tmp_path / "sav")
    assert shard_sav(sav_root, tmp_path / "sav", limit=1).written_now == 0
    assert files_of(tmp_path / "sav") == before


def test_a_set_of_a_later_version_is_refused_in_one_line(tmp_path):
    shutil.copytree(OLD, tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 4}))
    with pytest.raises(UserError, match=r"format version; met 4; wanted 1 or 2 or 3; use the release that wrote it"):
        ShardSet(tmp_path / "set")
