"""Shard sets written straight into an object store, by one machine and by tasks: the bytes of a local run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs

from shards.verification import verify
from tests.conftest import files_of
from tests.servers import objects, reach, serving

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def way(s3, monkeypatch, short_pauses):
    """A proxy to the server that can fail requests; this process and those that it starts use it."""
    with serving(upstream=s3) as way:
        for name, value in reach(way.server_port).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield way
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def arguments(sav_root):
    return ["shard", "--source", "sav", "--root", str(sav_root), "--shard-size", "10MB"]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(REPOSITORY / "cli.py"), *arguments], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers, cut, status",
    [("1", False, 500), ("1", True, 500), ("2", False, 403)],  # 403 is not tried again: pauses of workers are long
)
def test_uploads_that_fail_leave_nothing_torn_and_the_same_command_goes_on(
    here, way, arguments, sav_set, workers, cut, status
):
    place = f"bucket/fails-{cut}-{status}/sav"
    command = [*arguments, "--out", f"s3://{place.removesuffix('/sav')}", "--workers"]
    way.fail(".tar", sound=1, cut=cut, status=status)
    failed = process(*command, workers) if workers == "2" else here(*command, workers)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    error = failed.stderr.splitlines()[-1]
    assert f"s3://{place}/sav-00000" in error and "give the same command" in error
    found = objects(way.upstream, place.removeprefix("bucket/"))
    tars = {name: data for name, data in found.items() if name.endswith(".tar")}
    assert len(tars) == 1 and tars.items() <= files_of(sav_set).items()
    assert "manifest.json" not in found
    way.heal()
    done = here(*command, "1")
    assert done.returncode == 0, done.stderr
    # A worker that is stopped between a tar and its note leaves a tar that is written again.
    assert any(f"({count} by this run)" in done.stdout for count in ((2,) if workers == "1" else (2, 3)))
    assert objects(way.upstream, place.removeprefix("bucket/")) == files_of(sav_set)


@pytest.mark.slow
def test_tasks_and_merge(here, way, arguments, sav_set, tmp_path):
    for index in ("0", "1"):
        merged = here("merge", "s3://bucket/tasks/sav")
        assert merged.returncode == 1 and ("no shard set" in merged.stderr) == (index == "0"), merged.stderr
        task = ["--workers", "1", "--task-index", index, "--task-count", "2"]
        done = here(*arguments, "--out", "s3://bucket/tasks", *task)
        assert done.returncode == 0, done.stderr
    way.fail("index.npy", sound=0)
    assert here("merge", "s3://bucket/tasks/sav").returncode == 1
    assert "manifest.json" not in objects(way.upstream, "tasks/sav")
    way.heal()
    assert here("merge", "s3://bucket/tasks/sav").returncode == 0
    found = objects(way.upstream, "tasks/sav")
    assert found == files_of(sav_set)
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    assert verify([tmp_path]).ok


def test_another_set_is_replaced_only_with_overwrite(here, way, arguments):
    command = [*arguments, "--out", "s3://bucket/again", "--workers", "1", "--limit"]
    assert here(*command, "2").returncode == 0
    before = objects(way.upstream, "again")
    assert here(*command, "2").returncode == 0
    refused = here(*command, "1")
    assert refused.returncode == 1 and "--overwrite" in refused.stderr and objects(way.upstream, "again") == before
    assert here(*command, "1", "--overwrite").returncode == 0
    after = objects(way.upstream, "again")
    assert sorted(after) == sorted(before) and b'"samples": 1' in after["sav/manifest.json"]


def test_without_keys(way, arguments, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_ENDPOINT_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    refused = process(*arguments, "--out", "s3://bucket/none", "--workers", "1")
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1 and "credentials" in refused.stderr
