"""Shard sets written straight into an object store, by one machine and by tasks: the bytes of a local run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.verify import verify
from tests.conftest import files_of
from tests.pipeline.bucket import environment, faulty_way, objects, s3_server

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def way():
    with s3_server() as port, faulty_way(port) as way:
        yield way


@pytest.fixture
def cli(way, sav_root):
    def call(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        more = ["--source", "sav", "--root", str(sav_root), "--shard-size", "10MB"] if verb == "shard" else []
        command = [sys.executable, str(REPOSITORY / "cli.py"), verb, *more, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment(way.server_port))

    return call


@pytest.mark.parametrize("cut", [False, True])
def test_uploads_that_fail_leave_nothing_torn_and_the_same_command_goes_on(cli, way, sav_set, tmp_path, cut):
    place = f"one-{cut}"
    way.fail(".tar", sound=1, cut=cut)
    failed = cli("shard", "--out", f"s3://bucket/{place}", "--workers", "2")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    error = failed.stderr.splitlines()[-1]
    assert f"s3://bucket/{place}/sav/sav-00000" in error and "give the same command" in error
    stands = {name: data for name, data in objects(way.upstream, f"{place}/sav").items() if name.endswith(".tar")}
    assert len(stands) == 1 and stands.items() <= files_of(sav_set).items()
    assert "manifest.json" not in objects(way.upstream, f"{place}/sav")
    way.heal()
    done = cli("shard", "--out", f"s3://bucket/{place}", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "(3 by this run)" in done.stdout
    assert objects(way.upstream, f"{place}/sav") == files_of(sav_set)


def test_tasks_and_merge(cli, way, sav_set, tmp_path):
    for index in ("0", "1"):
        merged = cli("merge", "s3://bucket/tasks/sav")
        assert merged.returncode == 1 and ("no shard set" in merged.stderr) == (index == "0"), merged.stderr
        done = cli("shard", "--out", "s3://bucket/tasks", "--workers", "1", "--task-index", index, "--task-count", "2")
        assert done.returncode == 0, done.stderr
    way.fail("index.npy", sound=0, cut=False)
    assert cli("merge", "s3://bucket/tasks/sav").returncode == 1
    assert "manifest.json" not in objects(way.upstream, "tasks/sav")
    way.heal()
    assert cli("merge", "s3://bucket/tasks/sav").returncode == 0
    found = objects(way.upstream, "tasks/sav")
    assert found == files_of(sav_set)
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    assert verify([tmp_path]).ok


def test_another_set_is_replaced_only_with_overwrite(cli, way):
    out = ["--out", "s3://bucket/again", "--workers", "1"]
    assert cli("shard", *out, "--limit", "2").returncode == 0
    before = objects(way.upstream, "again")
    assert cli("shard", *out, "--limit", "2").returncode == 0
    refused = cli("shard", *out, "--limit", "1")
    assert refused.returncode == 1 and "--overwrite" in refused.stderr and objects(way.upstream, "again") == before
    assert cli("shard", *out, "--limit", "1", "--overwrite").returncode == 0
    after = objects(way.upstream, "again")
    assert sorted(after) == sorted(before) and b'"samples": 1' in after["sav/manifest.json"]


def test_without_keys(cli, way, monkeypatch, tmp_path):
    monkeypatch.setattr("tests.pipeline.bucket.KEYS", {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"})
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    refused = cli("shard", "--out", "s3://bucket/none", "--workers", "1")
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1 and "credentials" in refused.stderr
