"""Held-out samples: no file, folder, video or picture is in both parts, and adding data moves no sample."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shards.errors import UserError
from shards.format import INDEX, MANIFEST, key_for
from shards.groups import groups_of
from shards.manifest import INDEX_DTYPE, Manifest, sha256
from shards.reader import ShardSet
from shards.recode import recode
from tests.batches import make_loader
from tests.conftest import shard_sav
from trainer.data.holdout import find_twins, held_out_parts, holdout_notes


def fake(paths: list[str], frames: int = 1, source: str = "fake", old: bool = False) -> Any:
    """Make a stand-in for a set of these samples, with what the functions read of it."""
    index = np.zeros(len(paths), INDEX_DTYPE)
    for row, path in zip(index, paths, strict=True):
        row["key"] = key_for(path)
        row["file"], row["folder"], row["picture"] = groups_of(key_for(path), path, frames)
    index = index[["key", "texts"]] if old else index
    return SimpleNamespace(index=index, folder=Path(source), manifest=SimpleNamespace(source=source))


def sides(paths: list[str], part: np.ndarray, name: Any) -> set[str]:
    """Names that are in both parts."""
    held, trained = ({name(p) for p, h in zip(paths, part, strict=True) if h == side} for side in (True, False))
    return held & trained


PAIRS = [f"v{n % 40}/masklet_data_{n:05d}.npz" for n in range(800)]
MASKLETS = [f"sav_{n % 5:03d}/sav_{n:06d}.mp4#manual-{k}" for n in range(300) for k in range(4)]
COCO = [f"train2017/{n:012d}.jpg" for n in range(2000)]
REFER = [f"images/train2014/COCO_train2014_{n:012d}.jpg" for n in range(0, 2000, 2)]


def folder(path: str) -> str:
    return path.split("/")[0]


def file(path: str) -> str:
    return path.split("#")[0]


def number(path: str) -> int:
    return int(path.removesuffix(".jpg").split("_")[-1].split("/")[-1])


def test_by_default_no_picture_or_video_is_in_both_parts():
    sets = [fake(PAIRS, 2), fake(MASKLETS, 2), fake(COCO), fake(REFER)]
    pairs, masklets, coco, refer = held_out_parts(sets, 0.1, "picture")
    assert not sides(PAIRS, pairs, folder) and not sides(MASKLETS, masklets, file)
    assert not sides(COCO + REFER, np.concatenate([coco, refer]), number)
    assert sides(MASKLETS, masklets, folder)  # a folder of videos is divided
    for part in (pairs, masklets, coco, refer):
        assert 0 < part.mean() < 0.25
    assert abs(coco.mean() - 0.1) < 0.02
    assert find_twins(sets, [pairs, masklets, coco, refer]) is None and not holdout_notes(sets, 0.1, "picture")


def test_by_sample_holds_out_the_same_samples_as_earlier_releases():
    names = [f"masklet_data_{i}" for i in range(20_000)]
    shards = SimpleNamespace(index=np.array([(n.encode(),) for n in names], [("key", "S64")]))
    [chosen] = held_out_parts([shards], 0.1, "sample")
    # Of these names, as releases without the key chose: old runs depend on it.
    assert np.flatnonzero(chosen)[:6].tolist() == [1, 2, 49, 52, 57, 109] and abs(chosen.mean() - 0.1) < 0.01
    assert not held_out_parts([shards], 0.0, "sample")[0].any() and held_out_parts([shards], 1.0, "sample")[0].all()


@pytest.mark.parametrize("by, name", [("file", file), ("folder", folder)])
def test_files_and_folders_stay_together(by, name):
    masklets = fake(MASKLETS, 2)
    [part] = held_out_parts([masklets], 0.3, by)
    assert part.any() and not part.all() and not sides(MASKLETS, part, name)


def test_adding_data_moves_no_sample_between_the_parts():
    few = fake(PAIRS[:400], 2)
    many = fake(PAIRS, 2)
    for by in ("sample", "file", "folder", "picture"):
        [less] = held_out_parts([few], 0.2, by)
        [more] = held_out_parts([many, fake(COCO)], 0.2, by)[:1]
        assert less.any() and np.array_equal(less, more[:400]), by


def test_a_small_set_gives_its_lowest_group_and_others_follow():
    small = [f"v{n % 3}/masklet_data_{n}.npz" for n in range(12)]
    sets = [fake(small, 2), fake(small[:6], 2, "again")]
    parts = held_out_parts(sets, 0.05, "picture")
    assert [int(part.sum()) for part in parts] == [4, 2] and not sides(small, parts[0], folder)
    assert not sides(small + small[:6], np.concatenate(parts), folder)
    assert not held_out_parts(sets, 0.001, "picture")[0].any()  # it is due less than half a sample


def test_samples_with_uninformative_names_are_not_grouped():
    paths = [f"scene{n}/{side}.jpg" for n in range(200) for side in ("left", "right")]
    [part] = held_out_parts([fake(paths)], 0.1, "picture")
    assert 0.03 < part.mean() < 0.2
    assert sides(paths, part, lambda path: path.split("/")[1]) == {"left.jpg", "right.jpg"}


def test_a_folder_that_is_most_of_a_set_is_divided_with_a_warning():
    flat = [f"npz/masklet_data_{n:05d}.npz" for n in range(300)] + [f"v/masklet_data_{n}.npz" for n in range(20)]
    sets = [fake(flat, 2)]
    [part] = held_out_parts(sets, 0.1, "picture")
    assert 0.03 < part.mean() < 0.2 and sides(flat, part, folder) == {"npz"}
    [note] = holdout_notes(sets, 0.1, "picture")
    held = int(part[:300].sum())
    assert f"1 picture or video stands on both sides of the held-out part: of them {300 - held} samples" in note
    assert f"{held} held out" in note and "more than half of its set" in note


def test_equal_pictures_in_both_parts_are_counted():
    sets = [fake(COCO, source="coco"), fake(REFER, source="refcoco")]
    parts = held_out_parts(sets, 0.1, "sample")
    held = {n for n, h in zip(map(number, COCO + REFER), np.concatenate(parts), strict=True) if h}
    trained = {n for n, h in zip(map(number, COCO + REFER), np.concatenate(parts), strict=True) if not h}
    twins = find_twins(sets, parts)
    assert twins is not None and twins.groups == len(held & trained) > 50
    assert twins.trained + twins.held_out == 2 * twins.groups
    [note] = holdout_notes(sets, 0.1, "sample")
    assert f"{twins.groups:,} pictures or videos stand on both sides" in note and "data.holdout_by=picture" in note
    assert not holdout_notes(sets, 0.1, "sample", {"coco"}) and not holdout_notes(sets, 0.0, "sample")


def test_real_pairs_of_one_folder_stay_on_one_side(sav_set):
    def folders(part: str, **how) -> set[str]:
        loader = make_loader(
            [str(sav_set)], fields=("prompt_masks1",), batch_size=1, seed=7, holdout=0.05, part=part, **how
        )
        return {folder(batch.meta[0]["path"]) for batch in loader.epoch(0)}

    assert folders("holdout") and not folders("holdout") & folders("train")
    assert "on both sides" in holdout_notes([ShardSet(sav_set)], 0.4, "sample")[0]


def without_groups(folder: Path) -> None:
    """Make the set in `folder` one of an older release."""
    index = np.load(folder / INDEX)
    later = ("file", "folder", "picture", "frames", "letters")
    names = [name for name in index.dtype.names if name not in later]
    older = np.empty(len(index), [(name, index.dtype[name]) for name in names])
    for name in names:
        older[name] = index[name]
    np.save(folder / INDEX, older)
    digest = sha256((folder / INDEX).read_bytes())
    (folder / MANIFEST).write_bytes(replace(Manifest.read(folder), index_sha256=digest).to_bytes())


def test_sets_of_older_releases_are_read_and_can_be_updated(sav_root, tmp_path):
    shard_sav(sav_root, tmp_path / "sav", limit=4)
    new = ShardSet(tmp_path / "sav")
    shutil.copytree(tmp_path / "sav", tmp_path / "old")
    without_groups(tmp_path / "old")
    old = ShardSet(tmp_path / "old")
    [by_sample] = held_out_parts([old], 0.5, "sample")
    [also] = held_out_parts([new], 0.5, "sample")
    assert np.array_equal(by_sample, also)
    assert held_out_parts([old], 0.5, "picture")[0].any()
    assert "its index says nothing of files, folders and pictures" in holdout_notes([old], 0.5, "picture")[0]
    with pytest.raises(UserError, match=r"cannot be held out by folder.*sa2va-shards recode"):
        held_out_parts([old], 0.5, "folder")
    recode(tmp_path / "old", tmp_path / "mended", "gradient")
    assert np.array_equal(ShardSet(tmp_path / "mended").index, new.index)
