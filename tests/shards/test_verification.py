"""verify-shard finds every planted fault and names shard, key, field, the value met and the value wanted."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from shards.codec import normalise
from shards.errors import UserError
from shards.format import INDEX, MANIFEST
from shards.manifest import Manifest, pack_manifest, read_index, sha256
from shards.reader import ShardSet
from shards.verification import verify
from tests.shards.conftest import change_frame


def published_bug(samples):
    frame = samples[2].frames[1]
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    wrong = np.clip(normalise(frame.g_pixel_values, mean, std) * 255, 0, 255).astype(np.uint8)
    return [*samples[:2], change_frame(samples[2], 2, g_pixel_values=wrong), *samples[3:]]


def swapped_frames(samples):
    first, second = samples[2].frames
    sample = change_frame(samples[2], 1, g_pixel_values=second.g_pixel_values)
    return [*samples[:2], change_frame(sample, 2, g_pixel_values=first.g_pixel_values), *samples[3:]]


def mask_of_another_object(samples):
    wrong = samples[5].frames[0].masks
    return [*samples[:2], change_frame(samples[2], 1, masks=wrong), *samples[3:]]


def masks_swapped_between_frames(samples):
    first, second = samples[2].frames
    sample = change_frame(samples[2], 1, masks=second.masks)
    return [*samples[:2], change_frame(sample, 2, masks=first.masks), *samples[3:]]


def change_one(number, name, change):
    def fault(samples):
        value = np.ascontiguousarray(change(getattr(samples[2].frames[number - 1], name)))
        return [*samples[:2], change_frame(samples[2], number, **{name: value}), *samples[3:]]

    return fault


FAULTS = {
    "published bug": (published_bug, {"g_pixel_values2"}),
    "swapped frames": (swapped_frames, {"g_pixel_values1", "g_pixel_values2"}),
    "mask of another object": (mask_of_another_object, {"prompt_masks1"}),
    "masks swapped between frames": (masks_swapped_between_frames, {"prompt_masks1", "prompt_masks2"}),
    "BGR in 1024": (change_one(1, "g_pixel_values", lambda v: v[::-1]), {"g_pixel_values1"}),
    "BGR in 448": (change_one(2, "pixel_values", lambda v: v[::-1]), {"g_pixel_values2"}),
    "1024 flipped": (change_one(1, "g_pixel_values", lambda v: v[:, :, ::-1]), {"g_pixel_values1"}),
    "448 upside down": (change_one(1, "pixel_values", lambda v: v[:, ::-1]), {"g_pixel_values1"}),
    "rows and columns": (change_one(2, "g_pixel_values", lambda v: v.transpose(0, 2, 1)), {"g_pixel_values2"}),
    "mask flipped": (change_one(1, "masks", lambda v: v[:, :, ::-1]), {"prompt_masks1"}),
    "prompt flipped": (change_one(2, "prompt_masks", lambda v: v[:, ::-1]), {"prompt_masks2"}),
    "mask transposed": (change_one(1, "masks", lambda v: v.transpose(0, 2, 1)), {"prompt_masks1"}),
    "prompt of no cells": (change_one(1, "prompt_masks", np.zeros_like), {"prompt_masks1"}),
    "empty mask": (change_one(2, "masks", np.zeros_like), {"masks2", "prompt_masks2"}),
}


def test_a_sound_set_passes(sav_set):
    report = verify([sav_set], workers=2)
    assert report.ok and report.samples == report.objects == 12
    rows = {name: (row.shape, row.dtype, row.samples) for name, row in report.fields.items()}
    assert rows == {
        f"{name}{k}": (shape, dtype, 12)
        for k in (1, 2)
        for name, shape, dtype in (
            ("pixel_values", "(3, 448, 448)", "float32"),
            ("g_pixel_values", "(3, 1024, 1024)", "uint8"),
            ("prompt_masks", "(N, 16, 16)", "bool"),
            ("masks", "(N, 1024, 1024)", "bool"),
        )
    }
    assert report.fields["pixel_values1"].min >= -2.1180 and report.fields["pixel_values1"].max <= 2.6401
    assert "all checks hold" in report.table() and json.loads(json.dumps(report.to_json()))["ok"]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_with_right_checksums_are_reported(faulty, sav_set, name):
    change, fields = FAULTS[name]
    report = verify([faulty(change)])
    assert {failure.field for failure in report.failures} == fields
    for failure in report.failures:
        assert failure.key == ShardSet(sav_set).key(2) and failure.shard.endswith("sav-000000.tar")
        assert failure.met and failure.wanted
    assert "FAILED" in report.table()


def test_the_fault_writer_itself_adds_none(faulty):
    assert verify([faulty(lambda samples: samples)]).ok


@pytest.mark.parametrize("what", ["pixel_values", "g_pixel_values"])
def test_pictures_of_the_wrong_size(faulty, what):
    def shrink(samples):
        picture = getattr(samples[2].frames[0], what)
        return [*samples[:2], change_frame(samples[2], 1, **{what: picture[:, :-1].copy()}), *samples[3:]]

    report = verify([faulty(shrink)])
    assert {(f.field, f.what) for f in report.failures} == {(f"{what}1", "zstd frame of another size")}


def test_an_incomplete_sample(faulty, sav_set):
    def drop_a_frame(samples):
        (item,) = samples[2].meta["objects"]
        objects = [{**item, "filled": item["filled"] * 2}]
        meta = {**samples[2].meta, "frames": samples[2].meta["frames"] * 2, "objects": objects}
        return [*samples[:2], replace(samples[2], meta=meta), *samples[3:]]

    (failure,) = verify([faulty(drop_a_frame)]).failures
    assert failure.what == "incomplete sample" and "masks3" in failure.met


def test_repeated_keys_are_reported(faulty):
    report = verify([faulty(lambda samples: [*samples, samples[0]])])
    assert [failure.what for failure in report.failures] == ["key stands twice"]


@pytest.mark.slow
def test_single_bit_flips_anywhere_in_a_tar(copied, pytestconfig):
    """More: pytest --flips 500."""
    tar = sorted(copied.glob("*.tar"))[-1]
    whole = bytearray(tar.read_bytes())
    rng = random.Random(3)
    named = 0
    flips = pytestconfig.getoption("flips")
    for _ in range(flips):
        bit = rng.randrange(8 * len(whole))
        whole[bit // 8] ^= 1 << bit % 8
        tar.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        report = verify([tar])
        assert not report.ok, bit
        named += any(failure.key for failure in report.failures)
    assert named > 0.9 * flips  # the rest hit the end of the archive
    tar.write_bytes(whole)
    assert verify([tar]).ok


def test_files_of_the_set_that_were_changed(copied):
    manifest = json.loads((copied / "manifest.json").read_text())

    def failing(**changes) -> set[str]:
        (copied / "manifest.json").write_bytes(pack_manifest({**manifest, **changes}))
        return {failure.what for failure in verify([copied]).failures}

    assert failing() == set()
    assert "samples" in failing(samples=13)
    assert "samples + left out" in failing(inputs=20)
    assert "inputs left out" in failing(left_out={"empty mask": 1}, inputs=13)
    assert "SHA-256" in failing(index_sha256="0" * 64)
    assert "recipe and its hash differ" in failing(recipe_hash="0" * 16)
    assert "format version" in failing(version=4)
    assert "name of a shard" in failing(shards=[{**manifest["shards"][0], "name": "../../x.tar"}])
    (copied / "._sav-000000.tar").write_bytes(b"\0\5\26\7")  # a Mac's, beside each file that it copies
    assert failing() == set() == {failure.what for failure in verify([copied / "*"]).failures}
    (copied / "sav-000000.tar").rename(copied / "sav-000777.tar")
    assert {"tar that the manifest does not list", "missing"} <= {f.what for f in verify([copied]).failures}


@pytest.mark.parametrize("column", ["texts", "regions"])
def test_wrong_counts_in_the_index_are_reported(copied, column):
    index = read_index(copied).copy()
    index[column][3] += 1
    np.save(copied / INDEX, index)
    manifest = replace(Manifest.read(copied), index_sha256=sha256((copied / INDEX).read_bytes()))
    (copied / MANIFEST).write_bytes(manifest.to_bytes())
    (failure,) = verify([copied]).failures
    assert failure.what == "objects with a text, with a region, in the index"
    assert failure.key == ShardSet(copied).key(3)


def test_paths_tars_and_globs(sav_set):
    assert verify([str(sav_set / "*")]).samples == 12
    assert verify([str(sav_set.parent / "s*")]).samples == 12
    first = Manifest.read(sav_set).shards[0]
    assert verify([sav_set / first.name]).samples == first.samples
    with pytest.raises(UserError):
        verify([sav_set / "no.tar"])


@pytest.mark.parametrize("value", [None, -1, "x", {}, True, [[1]]], ids=repr)
def test_a_manifest_of_other_types_is_an_error_and_no_traceback(copied, value):
    manifest = json.loads((copied / "manifest.json").read_text())
    shard = manifest["shards"][0]
    for name in ("inputs", "samples", "objects", "index_sha256", "shards"):
        (copied / "manifest.json").write_bytes(pack_manifest({**manifest, name: value}))
        assert not verify([copied]).ok, name
    for name in shard:
        (copied / "manifest.json").write_bytes(pack_manifest({**manifest, "shards": [{**shard, name: value}]}))
        assert not verify([copied]).ok, name
    (copied / "manifest.json").write_bytes(pack_manifest({**manifest, "left_out": {"empty mask": value}}))
    assert not verify([copied]).ok


def test_objects_are_counted(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_bytes(pack_manifest({**manifest, "objects": 13}))
    assert [(f.what, f.met, f.wanted) for f in verify([copied]).failures] == [("objects", "12", "13")]


def test_more_masks_than_objects_are_not_decoded(faulty):
    def more(samples):
        masks = samples[2].frames[0].masks.repeat(3, axis=0)
        return [*samples[:2], change_frame(samples[2], 1, masks=masks), *samples[3:]]

    (failure,) = verify([faulty(more)]).failures
    assert (failure.field, failure.what, failure.met) == ("masks1", "number of masks", "3")
