"""Sets of some samples of a set: which ones are taken, and that their bytes are the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from pipeline.derive import Deriver
from shards.archive import ShardWriter
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.select import sample, split
from shards.verification import verify
from tests.conftest import files_of, shard_sav

SIZE = 10_000_000


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Each sample's bytes in its tar."""
    shards = ShardSet(folder)
    return {shards.key(i): bytes(shards.sample_bytes(i)) for i in range(len(shards))}


def folders_of(folder: Path) -> set[str]:
    shards = ShardSet(folder)
    return {shards.sample(i)[0]["path"].split("/")[0] for i in range(len(shards))}


def test_two_parts_hold_each_sample_once(sav_root, sav_set, tmp_path):
    options = ["--share", "0.4", "--by", "sample", "--shard-size", "4MB"]
    done = CliRunner().invoke(app, ["split", str(sav_set), "--out", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    whole, train, val = (bytes_of(folder) for folder in (sav_set, tmp_path / "sav-train", tmp_path / "sav-val"))
    assert not train.keys() & val.keys() and {**train, **val} == whole and train and val
    with_raw = Deriver(sav_root, tmp_path)  # the recipe, the plan and the options are still those of the raw data
    report = verify([tmp_path / "sav-*"], derive=with_raw.derive, same_inputs=with_raw.same_inputs)
    assert report.ok and report.samples == 12, report.table()
    assert all(tar.stat().st_size <= 4_000_000 + 20_480 for tar in tmp_path.glob("sav-*/*.tar"))
    manifest = Manifest.read(tmp_path / "sav-val")
    assert (manifest.inputs, manifest.samples, manifest.objects) == (len(val), len(val), len(val))
    assert manifest.selection.startswith("val, share 0.4 by sample; of 12 samples")


def test_a_folder_stays_together_and_stays_where_it_was(sav_root, sav_set, tmp_path):
    split(sav_set, tmp_path / "all", 0.5, "folder", SIZE)
    train, val = (folders_of(tmp_path / "all" / f"sav-{part}") for part in ("train", "val"))
    assert not train & val and train | val == folders_of(sav_set)
    # Less data, and so other tars: no sample changes sides.
    fewer = tmp_path / "fewer" / "sav"
    shutil.copytree(sav_root, tmp_path / "raw", ignore=lambda folder, names: [n for n in names if n.endswith("3.npz")])
    shard_sav(tmp_path / "raw", fewer)
    assert len(ShardSet(fewer)) < 12
    split(fewer, tmp_path / "fewer", 0.5, "folder", SIZE)
    assert folders_of(tmp_path / "fewer" / "sav-val") <= val and folders_of(tmp_path / "fewer" / "sav-train") <= train


def test_a_sample_of_a_set(sav_set, tmp_path):
    def taken(count: int, seed: int) -> list[str]:
        out = tmp_path / f"{count}-{seed}"
        done = CliRunner().invoke(
            app, ["sample", str(sav_set), "--out", str(out), "--n", str(count), "--seed", str(seed)]
        )
        assert done.exit_code == 0 and f"{count} samples" in done.output
        assert verify([out]).ok
        assert bytes_of(out).items() <= bytes_of(sav_set).items()
        return list(bytes_of(out))

    few = taken(3, 0)
    more = taken(6, 0)
    others = taken(6, 1)
    assert len(set(few)) == 3 and set(few) <= set(more) != set(others)
    order = [key for key in bytes_of(sav_set) if key in more]
    assert more == order  # of the set
    columns = ["texts", "regions", "size", "crc32"]
    whole = ShardSet(sav_set).index
    index = ShardSet(tmp_path / "6-0").index
    assert np.array_equal(index[columns], whole[np.isin(whole["key"], index["key"])][columns])


def test_a_stopped_split_goes_on(sav_set, tmp_path, monkeypatch):
    split(sav_set, tmp_path / "whole", 0.3, "sample", 3_000_000)
    copied = []
    copy = ShardWriter.copy
    most = 5

    def some(writer: ShardWriter, key: str, *rest) -> None:
        if len(copied) >= most:
            raise OSError(28, "No space left on device", "here")
        copied.append(key)
        copy(writer, key, *rest)

    monkeypatch.setattr(ShardWriter, "copy", some)
    with pytest.raises(UserError, match="No space left"):
        split(sav_set, tmp_path / "out", 0.3, "sample", 3_000_000)
    most = 100
    split(sav_set, tmp_path / "out", 0.3, "sample", 3_000_000)
    assert 12 <= len(copied) < 5 + 12  # what stood was not repeated
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_selection_does_not_pass_for_the_whole_set(sav_root, sav_set, tmp_path):
    sample(sav_set, tmp_path / "sav", 3, 0, SIZE)
    with pytest.raises(UserError, match="--overwrite"):
        shard_sav(sav_root, tmp_path / "sav")
    assert len(ShardSet(tmp_path / "sav")) == 3
    with pytest.raises(UserError, match="another shard set"):
        sample(sav_set, tmp_path / "sav", 4, 0, SIZE)


@pytest.mark.parametrize("damage", ["tar", "index.npy"])
def test_damage_is_not_given_fresh_checksums(copied, tmp_path, damage):
    path = copied / "sav-000000.tar" if damage == "tar" else copied / damage
    data = bytearray(path.read_bytes())
    data[3000 if damage == "tar" else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"CRC-32 of the sample|SHA-256"):
        sample(copied, tmp_path / "out", 12, 0, SIZE)


def test_impossible_choices_are_refused(sav_set, tmp_path):
    with pytest.raises(UserError, match=r"too few samples.*met 12 samples; wanted at least 13"):
        sample(sav_set, tmp_path / "out", 13, 0, SIZE)
    with pytest.raises(UserError, match="no sample in val"):
        split(sav_set, tmp_path / "out", 0.0, "folder", SIZE)
    assert not (tmp_path / "out").exists()


def test_a_whole_set_has_no_selection(sav_set):
    assert "selection" not in json.loads((sav_set / "manifest.json").read_bytes())
