"""A set with another codec: the same tensors, and the same bytes after recoding back."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import shards.rewrite
from cli import app
from pipeline.request import make_request
from pipeline.run import run
from shards.archive import ShardWriter
from shards.errors import UserError
from shards.format import INDEX
from shards.manifest import Manifest, pack_manifest, sha256
from shards.reader import ShardSet
from shards.recode import recode
from shards.verification import verify
from tests.batches import make_loader
from tests.conftest import files_of


def test_the_command(sav_set, raw_set):
    again = ["recode", str(sav_set), "--out", str(raw_set), "--codec", "raw"]  # it stands there already
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0 and re.search(r"12 samples in \d+ shards, 0\.\d\d GB; pictures raw\n", done.output)


def test_every_tensor_is_bit_equal(sav_set, raw_set):
    before = ShardSet(sav_set)
    after = ShardSet(raw_set)
    assert len(after) == len(before) == 12
    for i in range(12):
        old = before[i]
        new = after[i]
        assert old.keys() == new.keys() and old["__key__"] == new["__key__"]
        assert {**old.pop("meta"), "crc32": 0} == {**new.pop("meta"), "crc32": 0}
        for name, value in old.items():
            assert np.array_equal(value, new[name]) and (name == "__key__" or value.dtype == new[name].dtype), name


def test_the_recoded_set_is_complete_and_records_its_codec(sav_set, raw_set, tmp_path):
    report = verify([raw_set], workers=2)
    assert report.ok and report.samples == 12, report.table()
    assert json.loads((raw_set / "manifest.json").read_text())["codec"] == "raw"
    assert json.loads((sav_set / "manifest.json").read_text())["codec"] == "gradient"
    recode(raw_set, tmp_path / "sav", "zstd")
    assert "codec" not in json.loads((tmp_path / "sav" / "manifest.json").read_text())
    assert not (raw_set / ".work").exists()


def test_recoding_there_and_back_gives_the_same_bytes(sav_set, raw_set, tmp_path):
    recode(raw_set, tmp_path / "zstd", "zstd", 2)
    recode(tmp_path / "zstd", tmp_path / "sav", "gradient", 2)
    assert files_of(tmp_path / "sav") == files_of(sav_set)


def test_sharding_with_a_codec_stores_what_recoding_does(sav_root, raw_set, tmp_path):
    def shard(folder: Path, codec: str) -> Manifest:
        request = make_request("sav", sav_root, shard_bytes=10_000_000, limit=2, codec=codec)
        return run(request, folder, 1, 0.0).manifest

    assert shard(tmp_path / "sav", "raw").codec == "raw"
    assert verify([tmp_path / "sav"]).ok
    sharded = ShardSet(tmp_path / "sav")
    recoded = ShardSet(raw_set)
    assert [bytes(sharded.sample_bytes(i)) for i in range(2)] == [bytes(recoded.sample_bytes(i)) for i in range(2)]
    with pytest.raises(UserError, match="--overwrite"):
        shard(tmp_path / "sav", "zstd")
    recode(tmp_path / "sav", tmp_path / "back", "zstd")
    with pytest.raises(UserError, match="--overwrite"):  # the same plan, but another codec than its options name
        shard(tmp_path / "back", "raw")


def test_a_recoding_stopped_between_shards_goes_on(sav_set, raw_set, tmp_path, monkeypatch):
    written = []
    put = ShardWriter.write
    most = 4

    def write(writer: ShardWriter, sample) -> None:
        if len(written) >= most:
            raise OSError(28, "No space left on device", "here")
        written.append(sample.key)
        put(writer, sample)

    monkeypatch.setattr(ShardWriter, "write", write)
    with pytest.raises(UserError, match="cannot write; met No space left"):
        recode(sav_set, tmp_path / "sav", "raw")
    assert sorted(path.name for path in (tmp_path / "sav").iterdir()) == [".work", "sav-000000.tar"]
    assert {path.suffix for path in (tmp_path / "sav" / ".work").iterdir()} == {".json", ""}
    most = 100
    recode(sav_set, tmp_path / "sav", "raw")
    assert len(written) == 4 + 12 - Manifest.read(sav_set).shards[0].samples  # the shard that stood was not repeated
    assert files_of(tmp_path / "sav") == files_of(raw_set)


def test_a_finished_set_is_left_alone_and_another_is_refused(sav_set, raw_set, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in raw_set.iterdir()}
    assert recode(sav_set, raw_set, "raw") == Manifest.read(raw_set)
    for folder, pictures in ((raw_set, "zstd"), (sav_set, "raw")):
        with pytest.raises(UserError, match="another shard set stands here"):
            recode(sav_set, folder, pictures)
    assert {path: path.stat().st_mtime_ns for path in raw_set.iterdir()} == before


def test_two_recodings_at_a_time_are_refused(sav_set, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.lock._PATIENCE", 0.2)
    monkeypatch.setattr(shards.rewrite, "_begin", lambda *_: recode(sav_set, tmp_path / "sav", "raw"))
    with pytest.raises(UserError, match="another run is writing here"):
        recode(sav_set, tmp_path / "sav", "raw")


@pytest.mark.parametrize("what", ["tar", "ledger.jsonl", INDEX])
def test_damage_is_not_given_fresh_checksums(copied, tmp_path, what):
    path = copied / "sav-000000.tar" if what == "tar" else copied / what
    data = bytearray(path.read_bytes() or b" ")
    data[-1 if what != "tar" else 3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"CRC-32 of the sample|SHA-256"):
        recode(copied, tmp_path / "out", "raw")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_member_of_another_codec_than_its_name_is_noticed(raw_set, tmp_path):
    shutil.copytree(raw_set, tmp_path / "sav")
    body = json.loads((tmp_path / "sav" / "manifest.json").read_text())
    for codec, failure_text in (
        ("zstd", "incomplete sample"),
        ("webp", "codec of the pictures"),
        ([], "codec of the pictures"),
    ):
        (tmp_path / "sav" / "manifest.json").write_bytes(pack_manifest({**body, "codec": codec}))
        assert failure_text in {failure.what for failure in verify([tmp_path / "sav"]).failures}
    tar = tmp_path / "sav" / body["shards"][0]["name"]
    tar.write_bytes(tar.read_bytes().replace(b"\x93NUMPY", b"\x93numpy"))
    body["shards"][0]["sha256"] = sha256(tar.read_bytes())
    (tmp_path / "sav" / "manifest.json").write_bytes(pack_manifest(body))
    assert "not what the extension says" in {failure.what for failure in verify([tar]).failures}


def test_the_loader_reads_every_codec(sav_set, raw_set):
    def batches(folder: Path) -> list:
        fields = ("pixel_values1", "g_pixel_values1", "prompt_masks1", "masks1")
        return [
            {name: tensor.clone() for name, tensor in b.frames[0].tensors().items()}
            for b in make_loader([folder], fields=fields, batch_size=3, seed=1).epoch(0)
        ]

    for one, other in zip(batches(sav_set), batches(raw_set), strict=True):
        assert all(one[field].equal(other[field]) for field in one)
