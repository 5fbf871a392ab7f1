"""The example of a source of one's own: its documented commands shard a small dataset and verify the set."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from examples import your_own_source
from shards.manifest import read_ledger
from shards.reader import ShardSet
from tests.pipeline.built import jpeg, put

REPOSITORY = Path(__file__).parents[2]
TABLE = """photo,top,left,bottom,right,text
one.jpg,10,20,60,90,the cat's head
one.jpg,0,0,96,128,everything
one.jpg,0,0,97,128,too high
two.jpg,40,40,80,80,a cup
gone.jpg,0,0,9,9,nothing
../boxes.csv,0,0,9,9,nothing
"""


def commands() -> list[list[str]]:
    """The commands in the example's docstring."""
    lines = (line.strip() for line in (your_own_source.__doc__ or "").splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


def call(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=REPOSITORY)


def write(root: Path, table: str) -> None:
    put(root / "boxes.csv", table.encode())
    put(root / "photos/one.jpg", jpeg())
    put(root / "photos/two.jpg", jpeg("coffee"))


@pytest.mark.slow
def test_the_documented_commands(tmp_path):
    root = tmp_path / "raw"
    out = tmp_path / "shards"
    write(root, TABLE.replace("../boxes.csv,0,0,9,9,nothing\n", ""))
    places = {"ROOT": str(root), "shards/": str(out), "shards/boxes": str(out / "boxes")}
    shard, verify = ([places.get(word, word) for word in words] for words in commands())
    sharded = call([*shard, "--max-bad", "0.5", "--workers", "2"])
    assert sharded.returncode == 0, sharded.stderr
    verified = call(verify)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    shards = ShardSet(out / "boxes")
    samples = {sample["meta"]["path"]: sample for sample in (shards[n] for n in range(len(shards)))}
    texts = [item["texts"] for item in samples["photos/one.jpg"]["meta"]["objects"]]
    assert texts == [["the cat's head"], ["everything"]] and "photos/two.jpg" in samples
    assert [item["reason"] for item in samples["photos/one.jpg"]["meta"]["left_out"]] == ["box outside its photo"]
    (line,) = read_ledger(out / "boxes")
    assert (line.path, line.reason) == ("photos/gone.jpg", "no such file")


def test_a_name_that_leaves_the_folder_ends_the_run_in_one_line(tmp_path):
    write(tmp_path / "raw", TABLE)
    places = {"ROOT": str(tmp_path / "raw"), "shards/": str(tmp_path / "shards")}
    refused = call([places.get(word, word) for word in commands()[0]])
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "path leaves the dataset" in refused.stderr
