"""A sharding run: the same bytes whatever the workers, the file system's order, and however often it is killed."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.request import make_request
from pipeline.run import RunSummary, merge, run, run_task
from pipeline.workspace import TaskShare
from shards.errors import UserError
from shards.format import Codec
from shards.manifest import Manifest, read_index, read_ledger
from shards.reader import ShardSet
from shards.storage.store import LocalFolder
from shards.table import TABLE
from shards.table_list import LIST, PICTURES
from tests.conftest import files_of, shard_sav
from tests.killed import killed_at

REPOSITORY = Path(__file__).parents[2]
FILES = ["index.npy", "ledger.jsonl", "manifest.json", TABLE, PICTURES]


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        str(REPOSITORY / "cli.py"),
        "shard",
        "--source",
        "sav",
        "--root",
        str(root),
        "--out",
        str(out),
        *more,
    ]


def test_the_result_does_not_depend_on_the_number_of_workers(sav_root, sav_set, tmp_path):
    shard_sav(sav_root, tmp_path / "sav", workers=3)
    assert files_of(tmp_path / "sav") == files_of(sav_set)
    assert len(list(sav_set.glob("*.tar"))) >= 3


def test_the_result_does_not_depend_on_the_order_of_listing(sav_root, sav_set, tmp_path):
    copy = tmp_path / "raw"
    paths = [path.relative_to(sav_root) for path in sav_root.rglob("*.npz")]
    random.Random(5).shuffle(paths)
    for path in paths:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(sav_root / path, copy / path)
    shard_sav(copy, tmp_path / "sav")
    assert files_of(tmp_path / "sav") == files_of(sav_set)


def test_a_tar_stays_below_the_size_that_was_asked_for(sav_root, sav_set):
    assert all(shard.bytes <= 10_000_000 for shard in Manifest.read(sav_set).shards)


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(sav_root, sav_set, tmp_path, pytestconfig):
    """kill -9 on the leading process alone: its workers must not outlive it. More kills: pytest --kills 20."""
    moments = random.Random(11)
    call = command(sav_root, tmp_path, "--workers", "2", "--shard-size", "10MB")
    kills = 0
    for _ in range(pytestconfig.getoption("kills")):
        kills += killed_at(moments.randint(4, 60), tmp_path, call, moments.uniform(0, 0.5))
        for tar in (tmp_path / "sav").glob("*.tar"):
            assert tar.read_bytes() == (sav_set / tar.name).read_bytes()  # under its final name it is whole
    assert kills
    subprocess.run(call, check=True, capture_output=True)
    assert files_of(tmp_path / "sav") == files_of(sav_set)


def test_a_finished_set_is_left_as_it_is(sav_root, sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sav").iterdir()}
    assert shard_sav(sav_root, tmp_path / "sav").written_now == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sav").iterdir()} == before


def test_another_set_is_replaced_only_with_overwrite(sav_root, sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    before = files_of(tmp_path / "sav")
    with pytest.raises(UserError, match="--overwrite"):
        shard_sav(sav_root, tmp_path / "sav", recipe="sa2va")
    assert files_of(tmp_path / "sav") == before
    manifest = shard_sav(sav_root, tmp_path / "sav", limit=2, overwrite=True).manifest
    assert sorted(files_of(tmp_path / "sav")) == [*FILES, "sav-000000.tar", LIST]
    assert manifest.samples == 2


def test_a_missing_tar_of_a_finished_set_is_named(sav_root, sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    (tmp_path / "sav" / "sav-000001.tar").unlink()
    with pytest.raises(UserError, match=r"sav-000001\.tar.*missing"):
        shard_sav(sav_root, tmp_path / "sav")


def test_two_runs_into_one_folder(sav_root, tmp_path, monkeypatch):
    import pipeline.workspace
    import shards.lock

    monkeypatch.setattr(shards.lock, "_PATIENCE", 0.2)
    with pipeline.workspace.Workspace(LocalFolder(tmp_path / "sav")), pytest.raises(UserError, match="another run"):
        shard_sav(sav_root, tmp_path / "sav")


def test_bad_inputs_go_to_the_ledger_and_the_run_goes_on(root_with_faults, sav_set, tmp_path, capsys):
    """The first of each kind is printed at once, also where two workers find one of it each."""
    (root_with_faults / "masklet_data_00000.npz").write_bytes(b"PK\x03\x04 cut short")
    summary = shard_sav(root_with_faults, tmp_path / "sav", workers=2, max_bad=0.25)
    manifest = summary.manifest
    assert manifest.inputs == 16 == manifest.samples + sum(manifest.left_out.values())
    assert manifest.left_out == {"empty mask": 1, "not a whole npz file": 2, "wrong keys": 1}
    printed = [line for line in capsys.readouterr().err.splitlines() if "first of its kind" in line]
    assert len(printed) == 3 and all(any(reason in line for line in printed) for reason in manifest.left_out)
    lines = read_ledger(tmp_path / "sav")
    assert [(line.path, line.reason, line.bad) for line in lines] == [
        ("masklet_data_00000.npz", "not a whole npz file", True),
        ("sav_coffee/masklet_data_00099.npz", "not a whole npz file", True),
        ("sav_rocket/masklet_data_00001.npz", "empty mask", True),
        ("sav_rocket/masklet_data_00002.npz", "wrong keys", True),
    ]
    sound = {ShardSet(sav_set).key(i) for i in range(12)}
    assert {ShardSet(tmp_path / "sav").key(i) for i in range(12)} == sound


def test_too_many_bad_inputs_stop_the_run_and_it_can_go_on(here, root_with_faults, tmp_path):
    call = command(root_with_faults, tmp_path, "--shard-size", "10MB", "--workers", "1")
    stopped = here(*call[2:])
    assert stopped.returncode == 1
    error = stopped.stderr.splitlines()[-1]
    assert "too many bad inputs" in error and "sav_coffee/masklet_data_00099.npz: not a whole npz file" in error
    assert read_ledger(tmp_path / "sav")[0].path == "sav_coffee/masklet_data_00099.npz"
    assert not (tmp_path / "sav" / "manifest.json").exists()
    assert "left out: empty mask" in here(*call[2:], "--max-bad", "0.5").stdout
    shard_sav(root_with_faults, tmp_path / "undisturbed", max_bad=0.5)
    assert files_of(tmp_path / "sav") == files_of(tmp_path / "undisturbed")


def test_a_shard_with_nothing_in_it_is_not_written(sav_root, tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    for i in range(3):
        (root / f"masklet_data_{i:05d}.npz").touch()
    with pytest.raises(UserError, match=r"not one sample; met 3 inputs left out: 3 x not a whole npz file"):
        shard_sav(root, tmp_path / "sav", max_bad=1.0)
    assert [file for file in files_of(tmp_path / "sav") if "/" not in file] == ["ledger.jsonl"]
    shutil.copyfile(sav_root / "sav_rocket" / "masklet_data_00000.npz", root / "masklet_data_00001.npz")
    manifest = shard_sav(root, tmp_path / "sav", max_bad=1.0, shard_bytes=1, overwrite=True).manifest
    assert (manifest.inputs, manifest.samples) == (3, 1)
    assert sorted(files_of(tmp_path / "sav")) == [*FILES, "sav-000001.tar", LIST]


def test_a_full_disk_leaves_nothing_torn(sav_root, sav_set, tmp_path, monkeypatch):
    from shards.archive import ShardWriter

    put = ShardWriter.put
    calls = iter(range(100))

    def put_until_full(self, sample, members):
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        put(self, sample, members)

    monkeypatch.setattr(ShardWriter, "put", put_until_full)
    with pytest.raises(UserError, match=r"No space left.*same command"):
        shard_sav(sav_root, tmp_path / "sav")
    assert not list((tmp_path / "sav").rglob("*.tmp"))
    shard_sav(sav_root, tmp_path / "sav")
    assert files_of(tmp_path / "sav") == files_of(sav_set)


def test_a_dry_run_and_an_estimate_speak_of_the_codec_of_the_set_that_stands_there(here, sav_root, tmp_path):
    assert " gradient" in here(*command(sav_root, tmp_path, "--dry-run")[2:]).stdout
    sizes = {}
    for codec in ("gradient", "raw"):
        shard_sav(sav_root, tmp_path / "sav", limit=2, codec=codec, overwrite=True)
        assert f" {codec}" in here(*command(sav_root, tmp_path, "--limit", "2", "--dry-run")[2:]).stdout
        estimate = ["estimate", *command(sav_root, tmp_path, "--limit", "2")[3:]]
        [sizes[codec]] = [line for line in here(*estimate).stdout.splitlines() if " bytes " in line]
    assert sizes["gradient"] != sizes["raw"]
    assert " gradient" in here(*command(sav_root, tmp_path, "--dry-run", "--overwrite")[2:]).stdout


def test_dry_run_writes_nothing(here, sav_root, tmp_path):
    assert (
        "12" in here(*command(sav_root, tmp_path / "out", "--dry-run")[2:]).stdout and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    "more", [["--root", "nowhere"], ["--recipe", "mine"], ["--source", "imagenet"], ["--prompt-pooling", "max"]]
)
def test_a_users_mistake_is_one_line(here, sav_root, tmp_path, more):
    wrong = here(*command(sav_root, tmp_path / "out", *more)[2:])
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and len(wrong.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_no_clock_and_no_user_in_the_bytes(sav_set):
    for name, data in files_of(sav_set).items():
        for word in (os.environ.get("USER", "root-user"), str(Path.home()), str(sav_set)):
            assert word.encode() not in data or len(word) < 4, name
    assert json.loads((sav_set / "manifest.json").read_bytes())["version"] == 2
    keys = read_index(sav_set)["key"]
    assert len(set(keys.tolist())) == len(keys) == 12


@pytest.fixture
def read_only(monkeypatch):
    """Return a function that makes a folder read-only by failing system calls: modes do not stop the superuser."""

    def forbid(folder: Path, number: int) -> None:
        def refusing(name: str):
            call = getattr(os, name)

            def refuse(path, *arguments, **more):
                writes = name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR)
                if writes and str(path).startswith(str(folder)):
                    raise OSError(number, os.strerror(number), str(path))
                return call(path, *arguments, **more)

            return refuse

        for name in ("mkdir", "open", "unlink", "replace", "rmdir"):
            monkeypatch.setattr(os, name, refusing(name))

    return forbid


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_finished_set_that_cannot_be_written_to_stands_already(sav_root, sav_set, tmp_path, read_only, here, number):
    shutil.copytree(sav_set, tmp_path / "sav")
    read_only(tmp_path, number)
    arguments = command(sav_root, tmp_path, "--shard-size", "10MB", "--workers", "1")[2:]
    finished = here(*arguments)
    assert finished.returncode == 0 and "(0 by this run)" in finished.stdout
    finished = here(*arguments, "--task-index", "0", "--task-count", "2")
    assert finished.returncode == 0 and "(0 by this run)" in finished.stdout
    other = here(*arguments, "--limit", "2")
    assert other.returncode == 1 and os.strerror(number) in other.stderr
    assert files_of(tmp_path / "sav") == files_of(sav_set)


def test_a_set_keeps_its_codec(sav_root, tmp_path):
    """Without a codec, a request takes that of the set that stands there, finished or begun."""

    def shard(name: str, codec: Codec | None, share: TaskShare | None = None, overwrite: bool = False) -> RunSummary:
        request = make_request("sav", sav_root, limit=2, shard_bytes=5_000_000, codec=codec)
        if share:
            run_task(request, tmp_path / name, share, 1, 0.0)
            return merge(tmp_path / name, 0.0) if share.index else None
        return run(request, tmp_path / name, 1, 0.0, overwrite=overwrite)

    assert shard("new", None).manifest.codec == "gradient"
    assert shard("old", "zstd").manifest.codec == "zstd"
    again = shard("old", None)
    assert (again.written_now, again.manifest.codec) == (0, "zstd")
    assert shard("old", None, overwrite=True).manifest.codec == "gradient"
    shard("tasks", "raw", TaskShare(0, 2))
    assert shard("tasks", None, TaskShare(1, 2)).manifest.codec == "raw"
    with pytest.raises(UserError, match="--overwrite"):
        shard("tasks", "zstd")
