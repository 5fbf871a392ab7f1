"""Checks of shards: damage, and samples that lack what an objective needs, are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.table import write_table
from tests.conftest import without_tables
from tests.trainer.doctor.found import damage, found


def test_a_mix_is_checked_by_objective(good: list[str], sav_set: Path, tmp_path: Path):
    """The first sample of a set has no text: the run leaves it out, and a finding reports it."""
    texted = damage(sav_set, tmp_path / "texted", "texts")
    mixed = [*good, f"data.shards=[{sav_set},{texted}]", "mix={dual: {sources: [sav]}, segment: {sources: [folder]}}"]
    assert not found(mixed)
    warned, rows = found(mixed, "warn")
    assert rows == ("rows", "segment: nothing could be asked of the first 2 batches")  # the index alone says otherwise
    assert warned[0] == "objective" and "texted: 11 of 12 samples have an object with a text, the others" in warned[1]
    findings = [text for _, text in found(mixed, "ok")]
    (counts,) = (text for text in findings if "samples per epoch" in text)
    assert "dual: 3 samples per epoch, 9 held out by picture; segment: 3 samples per epoch, 8 held out" in counts
    assert any("segment: lambda_mask" in text for text in findings)
    (failed,) = found([*mixed, "mix.segment.sources=[coco]"])
    assert failed[0] == "data" and "mix: no shards of this source; met coco" in failed[1]


@pytest.mark.parametrize(
    ("how", "check", "expected"),
    [
        ("missing", "data", "sav-000000.tar: no such file; wanted"),
        ("short", "data", "bytes; cop"),
        ("index", "data", "index.npy: SHA-256 of the index"),
        ("pixels", "samples", "sa2va-shards verify-shard"),
        ("recipe", "data", "shards of different recipes"),
    ],
)
def test_damaged_shards_are_named(good: list[str], sav_set: Path, tmp_path: Path, how: str, check: str, expected: str):
    other = damage(sav_set, tmp_path / "other", how)
    paths = f"{sav_set},{other}" if how == "recipe" else other
    failed = found([*good, f"data.shards=[{paths}]"])
    assert failed and failed[0][0] == check and expected in failed[0][1], failed
    assert str(other) in failed[0][1]


def test_what_a_condition_chooses_is_a_finding(good: list[str], sav_set: Path, tmp_path: Path):
    folder = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    write_table(folder)
    filtered = [*good, f"data.shards=[{folder}]", "data.holdout=0", "data.where=position < 8"]
    findings = [text for check, text in found(filtered, "ok") if check in ("data", "objective")]
    assert f"{folder}: where position < 8: 8 of 12 objects, in 8 of 12 samples; the others are left out" in findings
    assert any("dual: 8 samples per epoch" in text for text in findings)
    assert f"dual, {folder}: 8 of 8 samples that data.where chooses have an object with a prompt cell" in findings
    (failed,) = found([*good, f"data.shards=[{without_tables(folder)}]", "data.where=position < 8"])
    assert failed[0] == "data" and "no table of its objects" in failed[1]


def test_held_out_pictures_that_look_like_trained_ones_are_a_warning(good: list[str]):
    texts = [text for check, text in found([*good, "data.holdout_by=sample"], "warn") if check == "data"]
    assert (
        sum("held-out pictures are equal or nearly equal to one that is trained on, such as" in text for text in texts)
        == 1
    )


def test_a_set_without_a_table_of_pictures_is_named(good: list[str], sav_set: Path, tmp_path: Path):
    own = Path(shutil.copytree(sav_set, tmp_path / "own"))
    (own / "pictures.parquet").unlink()
    texts = [text for _, text in found([*good, f"data.shards=[{own}]"], "ok")]
    assert any(f"{own}: near twins of its held-out pictures are not looked for" in text for text in texts)
