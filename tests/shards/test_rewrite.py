"""Sets written again: killed at any moment, and with many shards."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.manifest import INDEX_DTYPE, positions_by_shard
from shards.reader import ShardSet
from shards.recode import recode
from shards.select import split
from shards.stats import measure_sets
from tests.conftest import files_of
from tests.killed import killed_at
from tests.shards.conftest import change_frame

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["recode", "split"])
def test_kill_9_at_any_moment(sav_set, raw_set, tmp_path, verb):
    """The same command goes on, and ends with the same bytes."""
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    moments = random.Random(7)
    if verb == "recode":
        more = ["--codec", "raw", "--threads", "2"]
        whole = raw_set
    else:
        more = ["--share", "0.4", "--by", "sample", "--shard-size", "3MB"]
        split(sav_set, whole, 0.4, "sample", 3_000_000)
    command = [sys.executable, str(REPOSITORY / "cli.py"), verb, str(sav_set), "--out", str(out), *more]
    killed = 0
    for _ in range(3):
        killed += killed_at(moments.randint(4, 16), out, command, moments.uniform(0, 0.05))
        for tar in out.rglob("*.tar"):  # under its final name it is whole
            assert tar.read_bytes() == (whole / tar.relative_to(out)).read_bytes()
    assert killed
    subprocess.run(command, check=True, capture_output=True)
    assert files_of(out) == files_of(whole)


def test_a_tar_that_vanished_is_written_again(sav_set, raw_set, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shards.rewrite.pack_index", stop)  # all tars stand then
        with pytest.raises(KeyboardInterrupt):
            recode(sav_set, tmp_path / "out", "raw")
    tars = sorted((tmp_path / "out").glob("*.tar"))
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:-512])
    recode(sav_set, tmp_path / "out", "raw")
    assert files_of(tmp_path / "out") == files_of(raw_set)


def test_a_damaged_sample_is_named_in_one_line(faulty, tmp_path):
    """The sample has more prompts than objects, with right checksums."""

    def more(samples):
        prompts = samples[2].frames[0].prompt_masks.repeat(2, axis=0)
        objects = [*samples[2].meta["objects"], *samples[2].meta["objects"]]
        wrong = change_frame(replace(samples[2], meta={**samples[2].meta, "objects": objects}), 1, prompt_masks=prompts)
        return [*samples[:2], replace(wrong, frames=tuple(replace(f, prompt_masks=prompts) for f in wrong.frames))]

    folder = faulty(more)
    message = f"{ShardSet(folder).key(2)}: JSON and members differ; met 2 frames, 2 objects; wanted 2 frames, 1 objects"
    with pytest.raises(UserError, match=message):
        recode(folder, tmp_path / "out", "raw")
    with pytest.raises(UserError, match=message):
        measure_sets([folder], 100)


def test_positions_by_shard():
    index = np.zeros(200_000, INDEX_DTYPE)
    index["shard"] = np.sort(np.random.default_rng(0).integers(0, 5_000, len(index)))
    index["shard"][-3:] = 9_000  # an index may say anything
    found = positions_by_shard(index, 5_001)
    assert len(found) == 5_001 and not len(found[5_000])
    assert all(np.array_equal(found[i], np.flatnonzero(index["shard"] == i)) for i in (0, 17, 4_998, 4_999))
    assert sum(map(len, found)) == len(index) - 3
    assert positions_by_shard(index[:0], 0) == []
