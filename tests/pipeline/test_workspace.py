"""One set written by several tasks side by side, as a Slurm array does, and merged to the bytes of one run."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.run import RunSummary, merge, run_task
from pipeline.workspace import TaskShare, Workspace, task_share
from shards.errors import UserError
from shards.storage.store import LocalFolder
from tests.conftest import files_of, sav_request, shard_sav

REPOSITORY = Path(__file__).parents[2]
TASKS = 2


def share(root: Path, out: Path, index: int, max_bad: float = 0.05, count: int = TASKS, limit: int | None = None):
    return run_task(sav_request(root, limit=limit), out, TaskShare(index, count), 1, max_bad)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".work")


@pytest.fixture
def array(sav_root, tmp_path):
    """Return a function that starts a task of an array as Slurm does: with docs/slurm.sbatch.

    With `killed_at` it kills itself at that use of a path that begins so.
    """
    arguments = ["--source", "sav", "--root", str(sav_root), "--out", str(tmp_path), "--shard-size", "10MB"]

    def start(index: int, killed_at: tuple[int, str] | None = None) -> subprocess.Popen[str]:
        modules = f"{tmp_path}:{REPOSITORY}" if killed_at else str(REPOSITORY)
        if killed_at:  # Python imports this module by itself
            module = f"from tests.killed import die_at\ndie_at(*{killed_at}, 0.0)\n"
            (tmp_path / "sitecustomize.py").write_text(module)
        slurm = {"PYTHONPATH": modules, "SLURM_SUBMIT_DIR": str(REPOSITORY)}
        slurm |= {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_COUNT": str(TASKS), "SLURM_CPUS_PER_TASK": "1"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(REPOSITORY / "docs/slurm.sbatch"), *arguments],
            env={**os.environ, **slurm, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.slow
def test_an_array_with_a_killed_task(here, array, sav_set, tmp_path):
    out = tmp_path / "sav"
    # Task 0 opens the name of the input that it reads, then the tar, and removes the first when the tar has grown.
    tasks = [array(0, killed_at=(3, f"{out}/.work/sav-000000.")), array(1)]
    printed = [task.communicate() for task in tasks]
    assert [task.returncode for task in tasks] == [-signal.SIGKILL, 0], printed
    for word in ("samples written", f"task 1 of {TASKS}", f"cli.py merge {out}"):
        assert word in printed[1][0]
    assert "sample/s" in printed[1][1]
    assert sorted(path.name.split(".", 2)[2] for path in out.glob(".work/sav-000000.*")) == ["reading.tmp", "tmp"]
    for tar in out.glob("*.tar"):
        assert tar.read_bytes() == (sav_set / tar.name).read_bytes()
    merged = here("merge", out)
    assert merged.returncode == 1 and len(merged.stderr.splitlines()) == 1
    assert "missing: sav-000000" in merged.stderr and f"of {TASKS} tasks: 0;" in merged.stderr
    assert not (out / "manifest.json").exists()
    assert array(0).wait() == 0
    assert merge(out, 0.05).manifest.samples == 12
    assert files_of(out) == files_of(sav_set)
    assert merge(out, 0.05).written_now == 0  # once more does no harm


def test_folders_of_machines_that_share_nothing_are_copied_into_one(sav_root, sav_set, tmp_path):
    for index in range(TASKS):
        share(sav_root, tmp_path / str(index) / "sav", index)
        shutil.copytree(tmp_path / str(index), tmp_path / "all", dirs_exist_ok=True)
    merge(tmp_path / "all/sav", 0.05)
    assert files_of(tmp_path / "all/sav") == files_of(sav_set)


def test_a_task_goes_on_where_it_stopped_and_leaves_a_finished_set(sav_root, sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    done = share(sav_root, tmp_path / "sav", 1)
    assert isinstance(done, RunSummary) and done.written_now == 0
    assert files_of(tmp_path / "sav") == files_of(sav_set)
    assert share(sav_root, tmp_path / "new", 1, limit=6, count=2).written_now == 1
    assert share(sav_root, tmp_path / "new", 1, limit=6, count=2).written_now == 0
    with pytest.raises(UserError, match="--overwrite"):
        share(sav_root, tmp_path / "new", 0, limit=5, count=2)
    with pytest.raises(UserError, match="--overwrite"):
        share(sav_root, tmp_path / "sav", 0, limit=5)


@pytest.mark.slow
def test_bad_inputs_count_over_all_tasks(root_with_faults, tmp_path):
    """3 of 15 are bad: no task alone has too many of them, all together have."""
    for index in range(2):
        share(root_with_faults, tmp_path / "sav", index, max_bad=0.14, count=2)
    with pytest.raises(UserError, match=r"too many bad inputs.*met 3 of 15; wanted at most 2"):
        merge(tmp_path / "sav", 0.14)
    manifest = merge(tmp_path / "sav", 0.2).manifest
    assert manifest.left_out == {"empty mask": 1, "not a whole npz file": 1, "wrong keys": 1}
    shard_sav(root_with_faults, tmp_path / "alone", max_bad=0.2)
    assert files_of(tmp_path / "sav") == files_of(tmp_path / "alone")
    with pytest.raises(UserError, match="too many bad inputs"):
        share(root_with_faults, tmp_path / "none", 0, max_bad=0, count=1)


def test_only_different_tasks_write_at_the_same_time(tmp_path, monkeypatch):
    import shards.lock

    monkeypatch.setattr(shards.lock, "_PATIENCE", 0.1)
    store = LocalFolder(tmp_path / "sav")
    with Workspace(store, TaskShare(0, 2)), Workspace(store, TaskShare(1, 2)):
        for other in (None, TaskShare(0, 2)):
            with pytest.raises(UserError, match="another run"):
                Workspace(store, other)
    with Workspace(store), pytest.raises(UserError, match="another run"):
        Workspace(store, TaskShare(0, 2))


def test_a_file_system_without_locks(sav_root, tmp_path, monkeypatch):
    def no_locks(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="no locks"):
        assert share(sav_root, tmp_path / "sav", 0, limit=1, count=1).samples == 1


def test_other_versions_of_libraries_do_not_mix(sav_root, tmp_path, monkeypatch):
    import pipeline.plan

    share(sav_root, tmp_path / "sav", 0, limit=6, count=2)
    monkeypatch.setattr(pipeline.plan, "version", lambda name: "0.1")
    with pytest.raises(UserError, match=r"met .*numpy 0\.1.*wanted .*numpy"):
        share(sav_root, tmp_path / "sav", 1, limit=6, count=2)


@pytest.mark.parametrize(
    "index, count, engine, overwrite",
    [
        (0, None, "local", False),
        (None, 2, "local", False),
        (2, 2, "local", False),
        (0, 2, "ray", False),
        (0, 2, "local", True),
    ],
)
def test_options_that_do_not_go_together(index, count, engine, overwrite):
    with pytest.raises(UserError):
        task_share(index, count, engine, overwrite)


def test_nothing_to_merge(tmp_path):
    with pytest.raises(UserError, match="no shard set here"):
        merge(tmp_path / "sav", 0.05)
    assert not (tmp_path / "sav").exists()


def test_shares_are_a_partition():
    for count in (1, 2, 3, 7):
        shards = [shard for index in range(count) for shard in TaskShare(index, count).select(range(11))]
        assert sorted(shards) == [*range(11)]
    assert np.ptp([len(TaskShare(index, 7).select(range(11))) for index in range(7)]) <= 1
