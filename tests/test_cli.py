"""The command line as a user types it: real subprocesses on real files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.size import parse_size

REPOSITORY = Path(__file__).parents[1]


def cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("text, size", [("1GB", 10**9), ("64MiB", 64 << 20), ("1.5 mb", 1_500_000), ("4096", 4096)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec", "0"])
def test_wrong_sizes(text):
    with pytest.raises(UserError, match=r"data\.cache_limit: not a size"):
        parse_size(text, "data.cache_limit")


def test_from_raw_to_seen_with_the_defaults(sav_root, tmp_path):
    """`shard --source sav --out shards/` reads data/sav; then verify-shard and preview, as in the README."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sav").symlink_to(sav_root)
    sharded = cli("shard", "--source", "sav", "--out", "shards/", cwd=tmp_path)
    assert sharded.returncode == 0, sharded.stderr
    for word in ("samples written", "12", "bytes", "seconds"):
        assert word in sharded.stdout
    assert "sample/s" in sharded.stderr  # rate; the time left stands before it
    verified = cli("verify-shard", "shards/sav", "--against", "data/sav", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    for field in ("pixel_values1", "g_pixel_values2", "prompt_masks1", "masks2"):
        assert field in verified.stdout
    shown = cli("preview", "shards/sav", "--samples", "2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    page = tmp_path / shown.stdout.removeprefix("preview: ").strip()
    assert page.suffix == ".html" and list(page.parent.glob("*.png"))


def test_verify_says_which_sample_differs_from_the_raw_files(here, sav_root, sav_set, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(sav_root, raw)
    changed = raw / "sav_chelsea" / "masklet_data_00000.npz"
    with np.load(changed) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["frame2"][100, 100, 0] = 255 - arrays["frame2"][100, 100, 0]
    np.savez(changed, **arrays)
    done = here("verify-shard", sav_set, "--against", raw, "--json", "--workers", 1)
    assert done.returncode == 1
    failures = json.loads(done.stdout)["failures"]
    assert failures and all("masklet_data_00000" in failure["key"] for failure in failures)
    assert {failure["field"] for failure in failures} <= {"pixel_values2", "g_pixel_values2"}


def test_verify_says_that_raw_files_are_missing_from_the_shards(here, sav_root, sav_set, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(sav_root, raw)
    shutil.copy(raw / "sav_rocket" / "masklet_data_00000.npz", raw / "sav_rocket" / "masklet_data_00001.npz")
    done = here("verify-shard", sav_set, "--against", raw, "--workers", 1)
    assert done.returncode == 1 and "raw files" in done.stdout


@pytest.mark.parametrize("verb", ["verify-shard", "preview"])
def test_a_folder_that_is_no_shard_set(here, verb, tmp_path):
    done = here(verb, tmp_path)
    assert done.returncode == 1
    assert "manifest" in done.stdout + done.stderr
