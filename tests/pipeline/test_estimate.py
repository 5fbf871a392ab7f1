"""Estimates of a run's size and time, from some of its inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.estimate import Amount, estimate
from pipeline.request import make_request
from shards.manifest import Manifest

REPOSITORY = Path(__file__).parents[2]


def test_an_estimate_from_all_inputs_is_exact(sav_root, sav_set):
    found = estimate(make_request("sav", sav_root, shard_bytes=10_000_000))
    manifest = Manifest.read(sav_set)
    assert (found.inputs, found.probed, found.shards) == (12, 12, len(manifest.shards))
    assert (found.samples, found.files) == (Amount(12, 0), len([*sav_set.iterdir()]))
    assert found.bytes.error == 0
    assert found.bytes.total == pytest.approx(sum(shard.bytes for shard in manifest.shards), rel=0.02)
    assert found.seconds.total > 0


def test_bad_inputs_add_no_bytes_to_the_estimate(sav_root, tmp_path):
    for path in sorted(sav_root.rglob("*.npz"))[:3]:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.relative_to(sav_root)).symlink_to(path)
    (tmp_path / "masklet_data_00000.npz").touch()
    assert estimate(make_request("sav", tmp_path)).samples.total == 3


def test_the_interval_holds_the_sum_as_often_as_it_says():
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, 0.5, 5000)
    held = 0
    for _ in range(400):
        amount = Amount.from_probe(rng.choice(sizes, 64, replace=False).tolist(), len(sizes))
        held += abs(amount.total - sizes.sum()) <= amount.error
    assert 360 <= held <= 396  # 95 %


def test_from_the_command_line(sav_root, tmp_path):
    call = [sys.executable, str(REPOSITORY / "cli.py"), "estimate", "--source", "sav", "--root", str(sav_root)]
    done = subprocess.run(
        [*call, "--out", str(tmp_path / "out"), "--samples", "2", "--codec", "raw"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for words in ("inputs │ 12, of which 2", "shards", "files", "bytes", "free", "hours", "+-"):
        assert words in done.stdout.replace("  ", " ") or words in " ".join(done.stdout.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [["shard", "--dry-run"], ["estimate"]], ids=["dry run", "estimate"])
def test_dangling_links_cause_no_traceback(here, sav_root, tmp_path, verb):
    """Dangling links: one of the inputs, all of them, the folder of the data, the folder of the shards."""
    (tmp_path / "raw").mkdir()
    link = tmp_path / "raw/masklet_data_00000.npz"
    link.symlink_to(tmp_path / "gone")
    (tmp_path / "raw/folder").symlink_to(tmp_path / "gone")
    arguments = [*verb, "--source", "sav", "--out", tmp_path / "raw/folder", "--root"]
    alone = here(*arguments, tmp_path / "raw")
    assert "Traceback" not in alone.stderr and not (tmp_path / "gone").exists()
    if verb == ["estimate"]:
        assert alone.returncode == 1 and "a link to nothing" in alone.stderr and len(alone.stderr.splitlines()) == 1
    (tmp_path / "raw/masklet_data_00001.npz").symlink_to(sav_root / "sav_coffee/masklet_data_00000.npz")
    mixed = here(*arguments, tmp_path / "raw")
    assert mixed.returncode == 0 and "nothing written" in mixed.stdout, mixed.stderr
    gone = here(*arguments, tmp_path / "raw/folder")
    assert gone.returncode == 1 and "no such folder" in gone.stderr
