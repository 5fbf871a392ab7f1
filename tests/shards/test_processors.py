"""Processors that a process may use: its affinity, and the quota of its control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.processors import usable_processors

COUNT = "from shards.processors import usable_processors; print(usable_processors())"


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """An affinity of four processors, whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def count(folder: Path, groups: str, **files: str) -> int:
    """`usable_processors` where `groups` are those of the process and `files` lie in `folder`, by path."""
    (folder / "groups").write_text(groups)
    for name, text in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_processors(folder / "groups", folder / "mounted")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has an affinity")
def test_affinity_limits_a_process():
    first = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "--cpu-list", first, sys.executable, "-c", COUNT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_it_is_at_most_what_the_machine_has():
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max", 4), ("200000", 2), ("150000", 1), ("50000", 1), ("900000", 4)],
)
def test_a_quota_of_version_2_limits_it(tmp_path: Path, four: None, quota: str, usable: int):
    assert count(tmp_path, "0::/job/step\n", **{"job/step/cpu.max": f"{quota} 100000\n"}) == usable


def test_the_quota_of_a_group_above_counts_too(tmp_path: Path, four: None):
    files = {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "300000 100000\n"}
    assert count(tmp_path, "0::/job/step\n", **files) == 3


def test_a_container_sees_its_group_as_the_root(tmp_path: Path, four: None):
    assert count(tmp_path, "0::/../../docker/abc\n", **{"cpu.max": "200000 100000\n"}) == 2
    assert count(tmp_path, "0::/docker/abc\n") == 2


@pytest.mark.parametrize(("quota", "usable"), [("-1", 4), ("200000", 2)])
def test_a_quota_of_version_1_limits_it(tmp_path: Path, four: None, quota: str, usable: int):
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": quota, "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert count(tmp_path, "3:cpu,cpuacct:/a\n2:memory:/b\n0::/\n", **files) == usable


def test_without_control_groups_the_affinity_counts(tmp_path: Path, four: None):
    assert usable_processors(tmp_path / "none", tmp_path) == 4
