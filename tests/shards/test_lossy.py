"""Lossy pictures: their loss is measured and recorded for good; they are refused unless allowed."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from typer.testing import CliRunner

import shards.archive
from cli import app
from pipeline.derive import Deriver
from shards.codec import decode_picture, encode_picture
from shards.errors import BadShard, UserError
from shards.lossy import EXACT, Psnr, decode_jpeg, encode_jpeg, psnr
from shards.manifest import Manifest, pack_manifest
from shards.reader import ShardSet, read_samples
from shards.recode import recode
from shards.select import sample, split
from shards.stats import measure_sets
from shards.verification import verify
from tests.batches import make_loader
from tests.conftest import without_tables
from tests.shards.conftest import change_frame, stored_samples, write_set
from trainer.config import load_config
from trainer.doctor.data import Data, check_sets

PICTURES = ("pixel_values1", "g_pixel_values1", "pixel_values2", "g_pixel_values2")


@pytest.fixture(scope="module")
def few(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples of `sav_set` in two tars. Not to be changed."""
    folder = tmp_path_factory.mktemp("few") / "sav"
    sample(sav_set, folder, 3, 0, 4_000_000)
    return folder


@pytest.fixture(scope="module")
def lossy(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`few` with JPEG pictures. Not to be changed."""
    folder = tmp_path_factory.mktemp("lossy") / "sav"
    recode(few, folder, "jpeg", 2)
    return folder


@pytest.fixture
def changed(lossy: Path, tmp_path: Path) -> Path:
    return without_tables(Path(shutil.copytree(lossy, tmp_path / "changed")))


def rewrite_manifest(folder: Path, **changes: object) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    body = {name: value for name, value in {**body, **changes}.items() if value is not None}
    (folder / "manifest.json").write_bytes(pack_manifest(body))


def whats(folder: Path, **how: object) -> set[str]:
    return {failure.what for failure in verify([folder], **how).failures}  # type: ignore[arg-type]


def ratios(samples: list) -> list[float]:
    return [ratio for one in samples for ratio in one.meta["psnr"].values()]


def test_the_psnr_is_measured_and_recorded(few, lossy):
    """Against another library's PSNR, from what the plain readers return; masks and prompts lose nothing."""
    ratios = []
    for info in Manifest.read(lossy).shards:
        for before, after in zip(read_samples(few / info.name), read_samples(lossy / info.name), strict=True):
            for name in (name for name in before if "masks" in name):
                assert np.array_equal(before[name], after[name])
            recorded = after["meta"]["psnr"]
            assert recorded.keys() == set(PICTURES) and "psnr" not in before["meta"]
            for name in PICTURES[1::2]:
                measured = peak_signal_noise_ratio(before[name], after[name])
                assert recorded[name] == pytest.approx(measured, abs=0.006) and measured > 40
            ratios += recorded.values()
    manifest = Manifest.read(lossy)
    assert len(ratios) == 12 and manifest.psnr == Psnr(min(ratios), pytest.approx(np.mean(ratios), abs=0.006))
    assert manifest.codec == "jpeg" and Manifest.read(few).psnr is None
    sizes = [sum(info.bytes for info in Manifest.read(folder).shards) for folder in (few, lossy)]
    assert sizes[1] < 0.5 * sizes[0]
    assert "jpeg, lossy: PSNR" in measure_sets([lossy], 1)[0].lines()[0]


def test_a_lossy_set_is_refused_in_one_line_unless_allowed(lossy):
    refused = CliRunner().invoke(app, ["verify-shard", str(lossy)])
    assert refused.exit_code == 1
    (line,) = [line for line in refused.output.splitlines() if line.startswith("FAILED")]
    assert "a lossy set; met jpeg, lossy: PSNR" in line and "wanted a lossless one, or --allow-lossy" in line
    allowed = CliRunner().invoke(app, ["verify-shard", str(lossy), "--allow-lossy", "--workers", "1"])
    assert allowed.exit_code == 0 and "3 samples" in allowed.output and "sav: jpeg, lossy: PSNR" in allowed.output


def test_against_the_raw_files_the_psnr_is_the_recorded_one(sav_root, lossy, tmp_path):
    raw = Deriver(sav_root, tmp_path)
    how = {"derive": raw.derive, "same_inputs": raw.same_inputs, "allow_lossy": True}
    assert verify([lossy], **how).ok
    changed = tmp_path / "sav"
    samples = stored_samples(lossy)
    for one in samples:
        one.meta["psnr"][PICTURES[1]] = 55.0
    write_set(changed, replace(Manifest.read(lossy), codec="gradient", psnr=Psnr.summarise(ratios(samples))), samples)
    assert whats(changed, **how) == {"PSNR against what the raw file gives"}
    assert not whats(changed, allow_lossy=True)  # which the shards alone cannot show


def test_a_manifest_with_another_psnr_is_refused(changed):
    for recorded, what in (
        ({"min": 45.0, "mean": 50.0}, "PSNR"),
        (None, "a lossy codec and no PSNR"),
        ({"min": 45.0}, "not a manifest of this version"),
        ({"min": "45", "mean": 45}, "not a manifest of this version"),
        ({"min": float("nan"), "mean": 45}, "not a manifest"),
    ):
        rewrite_manifest(changed, psnr=recorded)
        assert whats(changed, allow_lossy=True) == {what}


def test_a_lossy_set_without_its_mark_is_refused(few, lossy, changed, tmp_path, monkeypatch):
    rewrite_manifest(changed, codec=None, psnr=None)  # JPEG members under their own name
    assert whats(changed) == {"incomplete sample"}
    with pytest.raises(BadShard, match="incomplete sample"):
        ShardSet(changed)[0]
    with monkeypatch.context() as patch:  # and under another's
        encode = shards.archive._encode
        patch.setattr("shards.archive._encode", lambda frame, name, _: encode(frame, name, "jpeg"))
        write_set(tmp_path / "renamed", replace(Manifest.read(few), selection=""), stored_samples(few))
    assert whats(tmp_path / "renamed") == {"not what the extension says"}
    samples = stored_samples(lossy)  # decoded and stored as zstd, with a manifest that does not say so
    write_set(tmp_path / "laundered", replace(Manifest.read(few), selection=""), samples)
    assert whats(tmp_path / "laundered") == {"PSNR in the JSON"}
    with pytest.raises(UserError, match="PSNR in the JSON"):
        recode(tmp_path / "laundered", tmp_path / "out", "raw")


def test_a_sample_without_its_psnr_is_refused(lossy, tmp_path):
    first, *others = stored_samples(lossy)
    silent = replace(first, meta={k: v for k, v in first.meta.items() if k != "psnr"})
    manifest = replace(Manifest.read(lossy), codec="gradient", psnr=Psnr.summarise(ratios(others)))
    write_set(tmp_path / "sav", manifest, [silent, *others])
    assert whats(tmp_path / "sav", allow_lossy=True) == {"PSNR in the JSON"}

    def resampled(out: Path) -> Manifest:
        return sample(tmp_path / "sav", out, 3, 0, 10**7)

    for take in (resampled, lambda out: recode(tmp_path / "sav", out, "raw")):
        with pytest.raises(UserError, match="PSNR in the JSON"):
            take(tmp_path / take.__name__)
    assert {path.parent.name for path in tmp_path.glob("*/*.tar")} == {"sav"}


def test_copies_of_a_lossy_set_keep_its_mark(sav_root, lossy, tmp_path):
    made = Manifest.read(lossy)
    raw = recode(lossy, tmp_path / "raw", "raw")
    assert raw.codec == "raw" and raw.psnr == made.psnr
    assert whats(tmp_path / "raw") == {"a lossy set"} and verify([tmp_path / "raw"], allow_lossy=True).ok
    for folder in (lossy, tmp_path / "raw"):
        with pytest.raises(UserError, match="a lossy set already"):
            recode(folder, tmp_path / "again", "jpeg")
    assert not (tmp_path / "again").exists()
    parts = split(lossy, tmp_path, 0.5, "sample", 10**7)
    few = sample(tmp_path / "raw", tmp_path / "one", 1, 0, 10**7)
    for manifest, folder in zip((*parts, few), ("sav-train", "sav-val", "one"), strict=True):
        assert manifest.psnr and manifest.psnr.min >= made.psnr.min
        assert verify([tmp_path / folder], allow_lossy=True).ok and whats(tmp_path / folder) == {"a lossy set"}


def test_sharding_stores_what_recoding_does_and_a_lossy_set_is_not_taken_for_a_finished_one(sav_root, tmp_path):
    def shard(folder: Path, codec: str) -> None:
        out = ["--out", str(folder), "--root", str(sav_root), "--limit", "1", "--workers", "1"]
        done = CliRunner().invoke(app, ["shard", "--source", "sav", "--codec", codec, *out], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    for codec in ("zstd", "jpeg"):
        shard(tmp_path / codec, codec)
    recode(tmp_path / "zstd" / "sav", tmp_path / "recoded", "jpeg")
    sharded = ShardSet(tmp_path / "jpeg" / "sav")
    recoded = ShardSet(tmp_path / "recoded")
    assert (
        bytes(sharded.sample_bytes(0)) == bytes(recoded.sample_bytes(0))
        and sharded.manifest.psnr == recoded.manifest.psnr
    )
    recode(tmp_path / "recoded", tmp_path / "back" / "sav", "zstd")
    with pytest.raises(UserError, match="--overwrite"):
        shard(tmp_path / "back", "zstd")


def test_other_pictures_are_noticed_in_lossy_sets_too(few, tmp_path):
    first, *others = stored_samples(few)
    swapped = change_frame(first, 2, g_pixel_values=np.ascontiguousarray(first.frames[1].g_pixel_values[::-1]))
    write_set(tmp_path / "sav", replace(Manifest.read(few), selection=""), [swapped, *others])
    recode(tmp_path / "sav", tmp_path / "jpeg", "jpeg")
    (failure,) = verify([tmp_path / "jpeg"], allow_lossy=True).failures
    assert failure.what == "not the picture of pixel_values" and "BGR for RGB" in failure.met


def test_the_trainer_reads_a_lossy_set_and_names_it(lossy, few, tmp_path):
    loader = make_loader([lossy], fields=("pixel_values1", "g_pixel_values1"), batch_size=3, seed=1)
    (batch,) = loader.epoch(0)
    whole = {one["__key__"]: one for one in map(ShardSet(lossy).__getitem__, range(3))}
    for row, key in enumerate(batch.keys):
        assert np.array_equal(batch.frames[0].g_pixel_values[row], whole[key]["g_pixel_values1"])
        assert np.array_equal(batch.frames[0].pixel_values[row], whole[key]["pixel_values1"])
    assert len(loader.lossy) == 1 and "jpeg, lossy: PSNR" in loader.lossy[0] and "lossy" in loader.described[0]
    plain = make_loader([few], fields=("pixel_values1",), batch_size=3, seed=1)
    assert not plain.lossy and "lossy" not in plain.described[0]
    config = load_config([f"data.shards=[{lossy}]", "batch_size=1", "data.holdout=0"])
    (warned,) = [finding for finding in check_sets(config, Data.open(config, 1)) if finding.level == "warn"]
    assert "not bit-equal to the recipe" in warned.text


def jpeg(picture: np.ndarray, mode: str = "RGB", **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


def test_only_a_whole_baseline_jpeg_of_this_size_is_decoded():
    picture = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    good = encode_jpeg(picture.transpose(2, 0, 1))
    out = np.empty((3, 448, 448), np.uint8)
    assert decode_picture(good, 448, out) is out
    assert np.array_equal(out, np.asarray(Image.open(io.BytesIO(good))).transpose(2, 0, 1))
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    head = good.index(b"\xff\xc0")  # the frame header: marker, length, bits, height, width
    bomb = good[: head + 5] + b"\xff\xff\xff\xff" + good[head + 9 :]
    for data, message in (
        (jpeg(picture[:, :447]), "447 x 448"),
        (jpeg(picture, "L"), "448 x 448, L"),
        (jpeg(picture, "CMYK"), "CMYK"),
        (jpeg(picture, progressive=True), "progressive"),
        (bomb, "broken JPEG"),
        (jpeg(np.zeros((2000, 2000, 3), np.uint8)), "2000 x 2000"),
        (png.getvalue(), "broken JPEG"),
        (good[:-1000], "broken JPEG"),
        (good[:100], "broken JPEG"),
        (b"\xff\xd8\xff", "broken JPEG"),
    ):
        with pytest.raises(BadShard, match=message):
            decode_jpeg(data, 448)


def test_psnr_by_hand():
    picture = np.full((3, 16, 16), 100, np.uint8)
    assert psnr(picture, picture) == EXACT
    other = picture.copy()
    other[0, 0, 0] = 101
    assert psnr(other, picture) == pytest.approx(10 * np.log10(255**2 * 768), abs=0.005)
    black = np.zeros_like(picture)
    white = np.full_like(picture, 255)
    assert psnr(black, white) == psnr(white, black) == 0
    assert encode_picture(picture, "gradient") != encode_jpeg(picture) == encode_jpeg(picture)
    assert Psnr.summarise([]) is None and Psnr.summarise([40.0, 50.0]) == Psnr(40.0, 45.0)
