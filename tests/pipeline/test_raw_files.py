"""Changed raw files are detected: by the plan, for an unfinished set, for a finished one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline.run
from pipeline.dataset import RawDataset, find_dataset
from pipeline.derive import Deriver
from pipeline.raw_files import stamp
from pipeline.request import Request, make_request
from pipeline.run import RunSummary, run
from shards.errors import UserError
from shards.manifest import Manifest
from tests.conftest import files_of
from tests.layouts import CASES


def request_for(source: str, root: Path) -> Request:
    """The request of a layout, an input per shard."""
    options = CASES[source].options
    choices = {name[2:]: int(v) if v.isdecimal() else v for name, v in zip(options[::2], options[1::2], strict=True)}
    return make_request(source, root, shard_bytes=1, **choices)


def found(source: str, root: Path, records: Path) -> RawDataset:
    return find_dataset(request_for(source, root), records)


def stamps(dataset: RawDataset) -> list[str]:
    fresh = RawDataset(dataset.job, dataset.inputs)  # one that asks the file system again
    return [stamp(fresh, [item]) for item in fresh.inputs]


def sharded(source: str, root: Path, out: Path, **more: Any) -> RunSummary:
    return run(request_for(source, root), out, 1, 1.0, **more)


def flip(file: Path, *places: int) -> None:
    """Change bytes of `file`, by default one in its middle. Its size is kept; its time is a microsecond later."""
    data = bytearray(file.read_bytes())
    times = file.stat()
    for place in places or [len(data) // 2]:
        data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1000))


UNUSED = re.compile(r".*/(sav_000001_auto\.json|readme\.txt|frames_of_it/(frame\d+\.jpg|notes\.txt))")
"""Files that decide nothing: other masks, no data, frames of a video that are not among those taken."""


@pytest.mark.parametrize("source", CASES)
def test_every_file_of_a_layout_is_in_the_plan(source, tmp_path):
    """Files count by size, and by time, which only an unfinished set keeps; annotations count by their content."""
    CASES[source].write(root := tmp_path / "raw")
    dataset = found(source, root, tmp_path / "records")
    digest = dataset.digest
    before = stamps(dataset)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        sound = file.read_bytes()
        state = file.stat()
        os.utime(file, ns=(1, 1))
        if stamps(dataset) != before:
            file.write_bytes(sound + b"\0")
            assert found(source, root, tmp_path / "again").digest != digest, file
        else:  # annotations, of which some bytes say nothing
            changed = UNUSED.fullmatch(str(file)) is not None
            for place in range(0, len(sound), max(1, len(sound) // 20)):
                file.write_bytes(sound)
                flip(file, place)
                try:
                    changed |= found(source, root, tmp_path / "again").digest != digest
                except UserError:
                    changed = True
            assert changed, file
        file.write_bytes(sound)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert found(source, root, tmp_path / "again").digest == digest
    assert stamps(dataset) == before


def test_times_are_in_nothing_that_is_kept(tmp_path):
    """The same files with other times, elsewhere: the same set."""
    CASES["folder"].write(tmp_path / "raw")
    sharded("folder", tmp_path / "raw", tmp_path / "set")
    shutil.copytree(tmp_path / "raw", tmp_path / "copy", copy_function=shutil.copyfile)
    sharded("folder", tmp_path / "copy", tmp_path / "other")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "other")


KINDS = {"sav": ["*.npz"], "coco": ["*7.jpg"], "openimages": ["*.png", "*.zip"], "folder": ["m.png", "a.jpg"]}
KINDS |= {"sa1b": ["*.json", "*.tar"], "ref-youtube-vos": ["*.png"], "mevis": ["*.jpg"], "dam": ["*.tar"]}
KINDS |= {"sav-video": ["*.mp4", "*manual.json"], "ref-sav": ["*.mp4"]}


@pytest.mark.parametrize("source", KINDS)
def test_a_finished_set_is_not_that_of_changed_files(source, tmp_path):
    CASES[source].write(root := tmp_path / "raw")
    sharded(source, root, tmp_path / "set")
    for pattern in KINDS[source]:
        file = sorted(root.rglob(pattern))[0]
        sound = file.read_bytes()
        digits = [n for n in range(len(sound)) if sound[n] in b"0123456789"]
        places = {".json": digits[::7], ".mp4": range(len(sound) // 4, len(sound) // 2, 99)}
        flip(file, *places.get(file.suffix, ()))
        with pytest.raises(UserError, match=r"raw file has changed|set made otherwise"):
            sharded(source, root, tmp_path / "set")
        file.write_bytes(sound)  # newer than the set, and the same
        assert sharded(source, root, tmp_path / "set").written_now == 0


def test_many_newer_files_are_compared_in_part_with_a_remark(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.raw_files._COMPARED", 1)
    CASES["sa1b"].write(root := tmp_path / "raw")
    sharded("sa1b", root, tmp_path / "set")
    for file in root.rglob("*.*"):
        os.utime(file)
    capsys.readouterr()
    assert sharded("sa1b", root, tmp_path / "set").written_now == 0
    printed = capsys.readouterr().err
    assert "2 inputs have raw files that are newer than the set; 1 of them were made again, and are the same" in printed
    assert f"verify-shard {tmp_path}/set --against {root}" in printed


def test_a_changed_set_can_be_written_again(tmp_path):
    CASES["sa1b"].write(root := tmp_path / "raw")
    sharded("sa1b", root, tmp_path / "set")
    flip(next(root.rglob("*.jpg")))
    sharded("sa1b", root, tmp_path / "set", overwrite=True)
    sharded("sa1b", root, tmp_path / "fresh")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "fresh")


@pytest.fixture
def stopped(monkeypatch):
    """Return a function that runs until all shards are written, and stops before the set is finished."""

    def stop(source: str, root: Path, out: Path) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline.run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            sharded(source, root, out)

    return stop


def other_mask(file: Path) -> None:
    """Write another mask with the same number of bytes, and a time a little later, as a copied file may have."""
    times = file.stat()
    size = file.stat().st_size
    mask = np.zeros_like(np.asarray(Image.open(file)))
    mask[: mask.shape[0] // 3] = 255
    Image.fromarray(mask).save(file)
    file.write_bytes(file.read_bytes().ljust(size, b"\0")[:size])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("force", [False, True])
def test_an_unfinished_set_does_not_mix_two_states_of_the_raw_files(force, tmp_path, stopped, capsys):
    CASES["folder"].write(root := tmp_path / "raw")
    stopped("folder", root, tmp_path / "set")
    before = files_of(tmp_path / "set")
    other_mask(root / "m.png")
    summary = sharded("folder", root, tmp_path / "set", force=force)
    printed = capsys.readouterr().err
    assert ("2 shards are written again: their raw files have changed since" in printed) is not force
    assert summary.written_now == (0 if force else 2)
    sharded("folder", root, tmp_path / "fresh")
    kept = {name: data for name, data in before.items() if name.endswith(".tar")}
    fresh = {name: data for name, data in files_of(tmp_path / "fresh").items() if name.endswith(".tar")}
    now = {name: data for name, data in files_of(tmp_path / "set").items() if name.endswith(".tar")}
    assert now == (kept if force else fresh) and kept != fresh


def test_only_the_shards_of_changed_files_are_written_again(tmp_path, stopped, sav_root):
    """A changed time is enough; shards of other files stay."""
    shutil.copytree(sav_root, root := tmp_path / "raw")
    stopped("sav", root, tmp_path / "set")
    os.utime(root / "sav_coffee" / "masklet_data_00000.npz")
    stopped_again = tmp_path / "set"
    assert sharded("sav", root, stopped_again).written_now == 1
    assert Manifest.read(stopped_again).samples == 12


def test_a_verification_sees_changed_sizes_of_masks(tmp_path):
    CASES["folder"].write(root := tmp_path / "raw")
    manifest = sharded("folder", root, tmp_path / "set").manifest
    assert Deriver(root, tmp_path).same_inputs(manifest, tmp_path)
    (root / "m.png").write_bytes((root / "m.png").read_bytes() + b"\0")
    assert not Deriver(root, tmp_path).same_inputs(manifest, tmp_path)


@pytest.mark.parametrize("mask", ["masks/a.png", "masks/a/1.png"])
def test_masks_in_their_own_folder_are_in_the_plan(tmp_path, mask):
    root = tmp_path / "raw"
    picture = Image.new("RGB", (64, 48), "red")
    outline = np.zeros((48, 64), np.uint8)
    outline[8:40, 8:40] = 1
    for name, image in (("images/a.png", picture), (mask, Image.fromarray(outline))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    sharded("folder", root, tmp_path / "set")
    other_mask(root / mask)
    with pytest.raises(UserError, match=r"raw file has changed|set made otherwise"):
        sharded("folder", root, tmp_path / "set")


def test_files_that_are_found_by_alike_names_are_in_the_plan(tmp_path):
    """They are the pictures and masks of a line, and a picture that labelme's JSON names in another folder."""
    root = tmp_path / "raw"
    labels = tmp_path / "labelme"
    CASES["folder"].write(root)
    for name in ("m.png", "a.jpg"):
        (root / name).rename(root / name.upper())
    for file in (root / "M.PNG", root / "A.JPG"):
        before = found("folder", root, tmp_path / "records").digest
        file.write_bytes(file.read_bytes() + b"\0")
        assert found("folder", root, tmp_path / "records").digest != before
    (labels / "json").mkdir(parents=True)
    (labels / "images").mkdir()
    shutil.copy(root / "A.JPG", labels / "images/a.jpg")
    (labels / "json/a.json").write_text('{"shapes": [], "imagePath": "..\\\\images\\\\a.jpg"}')
    before = found("folder", labels, tmp_path / "records").digest
    (labels / "images/a.jpg").write_bytes(b"")
    assert found("folder", labels, tmp_path / "records").digest != before
