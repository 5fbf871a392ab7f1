"""`shard --without`: next month's files make a set of their own."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.derive import Deriver
from pipeline.estimate import estimate
from pipeline.request import make_request
from pipeline.run import merge, run, run_task
from pipeline.without import sets_besides
from pipeline.workspace import TaskShare
from shards.errors import UserError
from shards.manifest import read_ledger
from shards.reader import ShardSet
from shards.verification import verify
from tests.conftest import files_of

BROKEN = "masklet_data_00000.npz"
OTHER = Path(__file__).parents[1] / "shards" / "version_1" / "folder"


@pytest.fixture
def months(sav_root, tmp_path):
    """Raw data of two months, and the set of the first: its last input is bad, and mended in the second."""
    root = tmp_path / "raw"
    paths = sorted(path.relative_to(sav_root) for path in sav_root.rglob("*.npz"))
    for path in paths[:6]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sav_root / path, root / path)
    (root / paths[5]).write_bytes(b"PK\x03\x04 cut short")
    run(make_request("sav", root, shard_bytes=4_000_000), tmp_path / "shards" / "sav", 1, 0.5)
    for path in paths[5:9]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sav_root / path, root / path)
    (root / BROKEN).write_bytes(b"PK\x03\x04 cut short")
    return root, tmp_path / "shards" / "sav", [str(path) for path in paths[5:9]]


def request(root, *without, **options):
    made = make_request("sav", root, shard_bytes=4_000_000, **options)
    return replace(made, without=tuple(map(str, without)))


def test_what_another_set_holds_is_left_out_and_said(months, tmp_path, capsys):
    root, first, new = months
    next_set = tmp_path / "next" / "sav"
    manifest = run(request(root, first), next_set, 1, 0.5).manifest
    assert {meta["path"] for meta in map(ShardSet(next_set).meta, range(manifest.samples))} == {*new}
    assert [line.path for line in read_ledger(next_set)] == [BROKEN]
    assert manifest.options["without"] == {"inputs": 5, "plans": {ShardSet(first).manifest.plan: 5}}
    assert f"5 of 10 inputs are in {first}, and are left out" in capsys.readouterr().err
    whole = files_of(next_set)
    assert run(request(root, first), next_set, 1, 0.5).written_now == 0
    (tmp_path / "against").mkdir()
    raw = Deriver(root, tmp_path / "against")
    assert verify([next_set], derive=raw.derive, same_inputs=raw.same_inputs, workers=1).ok
    shutil.copy(root / new[0], root / new[1])  # a file that changed
    assert not verify([next_set], derive=raw.derive, same_inputs=raw.same_inputs, workers=1).ok
    shutil.copytree(first, tmp_path / "elsewhere")  # the folder's name has no part in the bytes
    assert estimate(request(root, tmp_path / "elsewhere")).inputs == 5
    assert files_of(next_set) == whole


def test_tasks_and_a_run_that_was_stopped_end_with_the_same_bytes(months, tmp_path):
    root, first, _ = months
    run(request(root, first), tmp_path / "whole", 1, 0.5)
    for index in range(2):
        run_task(request(root, first), tmp_path / "tasks", TaskShare(index, 2), 1, 0.5)
    merge(tmp_path / "tasks", 0.5)
    assert files_of(tmp_path / "tasks") == files_of(tmp_path / "whole")
    with pytest.raises(UserError, match="too many bad inputs"):
        run(request(root, first), tmp_path / "stopped", 1, 0)
    run(request(root, first), tmp_path / "stopped", 1, 0.5)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_the_limit_counts_what_is_left_and_nothing_left_is_an_error(months, tmp_path):
    root, first, _ = months
    manifest = run(request(root, first, limit=3), tmp_path / "few", 1, 0.5).manifest
    assert (manifest.inputs, manifest.samples) == (3, 2)
    with pytest.raises(UserError, match="made otherwise stands here"):
        run(request(root, limit=3), tmp_path / "few", 1, 0.5)
    (root / BROKEN).unlink()
    manifest = run(request(root, first, tmp_path / "few"), tmp_path / "rest", 1, 0.5).manifest
    assert (manifest.inputs, manifest.samples) == (2, 2)
    with pytest.raises(UserError, match="no new input; met all 9 inputs"):
        run(request(root, first, tmp_path / "few", tmp_path / "rest"), tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


def test_sets_of_other_sources_hold_nothing_and_changed_files_are_counted(months, capsys, tmp_path):
    root, first, new = months
    held = [path for path in root.rglob("*.npz") if str(path.relative_to(root)) not in (*new, BROKEN)]
    ahead = os.stat(first / "manifest.json").st_mtime + 60
    for path in held[:2]:
        os.utime(path, (ahead, ahead))
    run(request(root, first, OTHER), tmp_path / "next", 1, 0.5)
    said = capsys.readouterr().err
    assert "5 of 10 inputs are in" in said
    assert "the files of 2 of them are newer than that set" in said
    assert f"{OTHER}: a set of folder, not of sav" in said


def test_the_set_that_is_written_is_not_left_out_of_itself(tmp_path):
    for name in ("sav", "sav-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert sets_besides([str(tmp_path)], f"{tmp_path}/sav") == (str(tmp_path / "sav-2"),)
    assert sets_besides([], str(tmp_path / "sav")) == ()
