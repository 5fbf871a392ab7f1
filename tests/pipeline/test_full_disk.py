"""Runs into a disk that is too small: a real one of a few megabytes, mounted for the test."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shards.errors import UserError
from tests.conftest import files_of, shard_sav

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function: it takes a size and returns a folder on a disk of that size; called again, the disk grows."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" if not folder.is_mount() else f"remount,size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"this user may not mount a disk: {done.stderr.decode().strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # this process may still read there


def shard(root: Path, out: Path, *more: str) -> list[str]:
    cli = str(REPOSITORY / "cli.py")
    call = [sys.executable, cli, "shard", "--source", "sav", "--root", str(root), "--out", str(out)]
    return [*call, "--shard-size", "10MB", *more]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_fills_up_stops_the_run_and_the_named_command_goes_on(here, workers, disk, sav_root, sav_set):
    def run(call: list[str]) -> subprocess.CompletedProcess[str]:
        return here(*call[2:]) if workers == "1" else subprocess.run(call, capture_output=True, text=True)

    out = disk("20m")
    call = shard(sav_root, out, "--workers", workers, "--force")
    stopped = run(call)
    error = stopped.stderr.splitlines()[-1]
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert error.startswith("error: ") and "No space left on device" in error and " free" in error
    assert error.endswith(shlex.join(call))
    whole = [*(out / "sav").glob("*.tar")]
    assert whole and all(tar.read_bytes() == (sav_set / tar.name).read_bytes() for tar in whole)
    assert not [*out.rglob("*.tmp")] and not (out / "sav" / "manifest.json").exists()

    if workers == "1":
        again = run(shlex.split(error.split("where it stopped: ")[1]))
        assert again.returncode == 1 and "No space left on device" in again.stderr  # nobody made room
    disk("200m")
    finished = run(shlex.split(error.split("where it stopped: ")[1]))
    assert finished.returncode == 0, finished.stderr
    assert files_of(out / "sav") == files_of(sav_set)


def test_a_run_that_the_disk_will_not_hold_does_not_begin(here, disk, sav_root):
    out = disk("20m")
    refused = here(*shard(sav_root, out)[2:])
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    for word in (str(out / "sav"), "21.0 MB free", "wanted about", "--force"):
        assert word in refused.stderr
    assert not any(out.iterdir())
    shard_sav(sav_root, out / "sav", limit=4)  # a part of it may


@pytest.mark.slow
def test_finished_shards_need_no_space(disk, sav_root, sav_set):
    out = disk("40m")
    shard_sav(sav_root, out / "sav")
    (out / "sav" / "manifest.json").rename(out / "sav" / "kept")
    with pytest.raises(UserError, match="will not hold it"):  # another set, beside the one that stands
        shard_sav(sav_root, out / "other")
    (out / "sav" / "kept").rename(out / "sav" / "manifest.json")
    assert shard_sav(sav_root, out / "sav", recipe="sa2va", overwrite=True).written_now  # in its place


@pytest.mark.parametrize("size", ["4k", "16k"])
def test_a_disk_too_small_even_for_what_the_source_finds(size, disk, sav_root):
    out = disk(size)
    with pytest.raises(UserError, match=r"cannot write.*No space left|cannot write.*full|will not hold it"):
        shard_sav(sav_root, out / "sav")
    assert not any(out.iterdir())
