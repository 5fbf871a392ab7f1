"""The fuzz run finds each planted fault, and none in the product as it is."""

from __future__ import annotations

import mmap
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.format import LEDGER
from tests.fuzz import judge as judging
from tests.fuzz import mutate
from tests.fuzz.judge import KINDS, Pristine, judge, shard

SOURCE = "osprey"  # two samples, two pictures


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    return Pristine.made(SOURCE, tmp_path_factory.mktemp("fuzz"))


def raising(*_: object) -> None:
    raise KeyError("a")


def hanging(*_: object) -> None:
    time.sleep(90)


def greedy(*_: object) -> None:
    memory = mmap.mmap(-1, 500 << 20)  # new pages, whatever the process has freed before
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1


def silent(*_: object) -> None:
    raise SystemExit(3)


def executing(source: str, root: Path, out: Path) -> None:
    shard(source, root, out)
    (root.parent / mutate.MARK).touch()


def losing(source: str, root: Path, out: Path) -> None:
    """The input that is damaged is in neither the set nor its ledger."""
    shard(source, root, out)
    (out / source / LEDGER).write_bytes(b"")


def half_writing(source: str, root: Path, out: Path) -> None:
    shard(source, root, out)
    (tar,) = (out / source).glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(data)


FAULTS: dict[str, Callable[..., None]] = {
    "traceback": raising,
    "hang": hanging,
    "memory": greedy,
    "lost": losing,
    "broken set": half_writing,
    "executed": executing,
    "unsaid": silent,
}


def empty_picture(root: Path, draw: random.Random) -> list[mutate.Mutation]:
    file = root / "coco/train2017/8.jpg"
    file.unlink()
    file.write_bytes(b"")
    return [mutate.Mutation("empty", "coco/train2017/8.jpg", True)]


@pytest.fixture
def one_damage(monkeypatch):
    """Each input has the same damage, and tighter limits."""
    monkeypatch.setattr(judging, "mutate", empty_picture)
    monkeypatch.setattr(judging, "MEBIBYTES", 250)
    monkeypatch.setattr(judging, "SECONDS", 60)


def test_no_fault_is_found_where_none_is_planted(pristine, tmp_path, one_damage):
    assert judge(pristine, 0, 0, tmp_path).faults == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind, pristine, tmp_path, one_damage, monkeypatch):
    if kind == "hang":
        monkeypatch.setattr(judging, "SECONDS", 0.5)
    monkeypatch.setattr(judging, "shard", FAULTS[kind])
    assert kind in judge(pristine, 0, 0, tmp_path).faults


def test_every_kind_of_fault_has_a_test():
    assert FAULTS.keys() == {*KINDS}


def test_an_input_can_be_made_again(pristine, tmp_path):
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        shutil.copytree(pristine.root, folder)
        mutate.mutate(folder, random.Random("a:0:11"))
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in made)
    assert one == two
    assert one != {p.relative_to(pristine.root): p.read_bytes() for p in pristine.root.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_100_inputs_of_all_targets_do_no_harm():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "100", "--seed", "1", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
