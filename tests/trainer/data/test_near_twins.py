import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from shards import overlap, twins
from shards.pictures_table import PICTURES, perceptual_hash
from shards.reader import ShardSet, decode_field
from tests.fresh_accelerate import reset_accelerate
from tests.trainer.runs import SMALL
from trainer.build import open_data
from trainer.config import load_config
from trainer.data import near_twins as module
from trainer.data.holdout import held_out_parts
from trainer.data.near_twins import near_twins


def hashes_of(shards):
    """The hashes of the frames of each sample, from its pictures."""
    found = []
    for position in range(len(shards)):
        _, members = shards.sample(position)
        pictures = [
            decode_field(f, data, shards.recipe, as_stored=True)
            for f, data in members.items()
            if f.name == "pixel_values"
        ]
        found.append([perceptual_hash(picture) for picture in pictures])
    return found


def test_held_out_pictures_with_a_near_twin_in_the_training_part_are_counted(sav_set):
    shards = ShardSet(sav_set)
    (held_out,) = held_out_parts([shards], 0.3, "sample")
    held = [h for n, part in enumerate(hashes_of(shards)) for h in part if held_out[n]]
    trained = [h for n, part in enumerate(hashes_of(shards)) for h in part if not held_out[n]]
    expected = sum(any((a ^ b).bit_count() <= overlap.DISTANCE for b in trained) for a in held)
    assert expected > 0
    (line,) = near_twins([shards], 0.3, "sample").found
    assert line.startswith(f"{expected} of {len(held)} held-out pictures are equal or nearly equal")
    assert not near_twins([shards], 0.3, "sample").unknown
    assert near_twins([shards], 0.0, "sample") == near_twins([shards], 0.3, "sample", {"coco"}) == module.NearTwins()


def test_what_is_not_looked_for_is_said(sav_set, tmp_path, monkeypatch):
    own = Path(shutil.copytree(sav_set, tmp_path / "own"))
    (own / PICTURES).unlink()
    found = near_twins([ShardSet(own)], 0.3, "sample")
    assert not found.found
    (line,) = found.unknown
    assert "no table of its pictures" in line
    assert f"table {own}" in line
    monkeypatch.setattr(module, "MOST_SECONDS", 0.0)
    found = near_twins([ShardSet(sav_set)], 0.3, "sample")
    assert not found.found
    (line,) = found.unknown
    assert "it would take about" in line


def test_the_estimate_grows_with_the_work_and_not_with_equal_pictures():
    random = np.random.default_rng(0)
    small, large = (random.integers(0, 1 << 64, count, np.uint64) for count in (1_000, 100_000))
    assert 0 < twins.seconds(small, large, 6) < twins.seconds(large, large, 6) < twins.seconds(large, large, 12)
    assert twins.seconds(small, large, 6) == pytest.approx(twins.seconds(large, small, 6))


def test_a_training_says_it_at_its_start(sav_set):
    arguments = [*SMALL, f"data.shards=[{sav_set}]", "batch_size=1", "data.holdout=0.3", "data.holdout_by=sample"]
    said: list[str] = []
    try:
        open_data(load_config(arguments), Accelerator(cpu=True), said.append)
    finally:
        reset_accelerate()
    assert sum("held-out pictures are equal or nearly equal" in line for line in said) == 1
