"""Ids, names and keys that are repeated: separate inputs or bad ones, and no mix-up."""

import json

import numpy as np
import pytest

from pipeline.sources.frame_files import FrameFiles
from shards.errors import BadInput
from tests.pipeline.built import Found, box, jpeg, put, tar_of, zipped
from tests.pipeline.sources import test_coco, test_gcg, test_openimages, test_osprey, test_refvos, test_sa1b


def reason(found, path):
    with pytest.raises(BadInput) as raised:
        found.load(path)
    return f"{raised.value.what}; {raised.value.met}"


def test_sentences_of_an_annotation_id_that_two_objects_have(tmp_path):
    root = test_coco.write_refer(tmp_path / "raw")
    file = root / "refcoco+/instances.json"
    body = json.loads(file.read_text())
    body["annotations"].append(test_coco.annotation(1, 8, test_coco.SQUARE))
    file.write_text(json.dumps(body))
    found = Found("refcoco+", root, tmp_path)
    for path in found.paths:
        assert reason(found, path).startswith("one id for two objects; annotation 1 of ")
    assert found.counts["annotations that share an id"] == 1


def test_captions_of_flickr_that_share_an_id(tmp_path):
    content = test_gcg.flickr(("A cat.", [([[0, 5]], test_gcg.FIRST)]), ("A dog.", []))
    content["images"][1] |= {"id": "0", "file_name": "other.jpg"}
    root = test_gcg.write(tmp_path / "raw", test_gcg.FLICKR, content)
    folder = put(root / test_gcg.PLACES[test_gcg.FLICKR] / "other.jpg", jpeg()).parent.relative_to(root).as_posix()
    found = Found("gcg", root, tmp_path)
    assert found.paths == sorted([f"{folder}/{test_gcg.NAME}", f"{folder}/other.jpg"])
    for path in found.paths:
        assert reason(found, path).startswith("one id for two pictures; caption 0 of ")


def test_records_of_two_pictures_that_lie_in_one_folder(tmp_path):
    root = tmp_path / "raw"
    records = [test_osprey.described(file_name=name) for name in ("a/x.jpg", "b/x.jpg", "x.jpg")]
    test_osprey.write(root, *records)
    put(root / "coco/train2017/x.jpg", jpeg())
    found = Found("osprey", root, tmp_path)
    assert "coco/train2017/x.jpg" in found.paths and len(found.paths) == 2
    for path in found.paths:
        assert reason(found, path) == "one file for several names; a/x.jpg, b/x.jpg -> coco/train2017/x.jpg"


def test_videos_that_are_listed_twice(tmp_path):
    root = test_refvos.write_mevis(tmp_path / "raw")
    file = root / "train/meta_expressions.json"
    entry = json.dumps(json.loads(file.read_text())["videos"]["cafe01"])
    file.write_text(f'{{"videos": {{"cafe01": {entry}, "cafe01": {entry}}}}}')
    found = Found("mevis", root, tmp_path)
    assert reason(found, found.paths[0]).startswith("a video listed twice; cafe01 in meta_expressions.json")
    assert found.counts["videos"] == found.counts["videos listed twice"] == 1


def test_objects_that_two_videos_share(tmp_path):
    root = test_refvos.write_mevis(tmp_path / "raw")
    file = root / "train/meta_expressions.json"
    entry = json.loads(file.read_text())["videos"]["cafe01"]
    file.write_text(json.dumps({"videos": {"cafe01": entry, "cafe02": entry}}))
    assert Found("mevis", root, tmp_path).counts["objects that several videos share"] == 2


def test_photos_of_sa1b_in_two_tars(tmp_path):
    pair = {"sa_1.jpg": test_sa1b.photo(), "sa_1.json": b"{}"}
    for name in ("sa_000000.tar", "sa_000001.tar"):
        put(tmp_path / "raw" / name, tar_of(pair))
    put(tmp_path / "raw/more/sa_1.jpg", pair["sa_1.jpg"])
    found = Found("sa1b", tmp_path / "raw", tmp_path)
    assert len(found.paths) == found.counts["images"] == 3
    assert found.counts["images that are there more than once, each an input"] == 2


def test_rows_and_masks_of_open_images_that_stand_twice(tmp_path):
    root = tmp_path / "raw"
    openimages = test_openimages
    rows = [openimages.row(openimages.FIRST), openimages.row(openimages.FIRST, "aa", "/m/0zzz")]
    openimages.write_openimages(
        root,
        rows,
        {
            **openimages.ONE,
            openimages.mask_name(openimages.FIRST, "aa", "m0zzz"): openimages.png(openimages.shape(left=0.5)),
        },
    )
    put(root / "train-masks-0.zip", zipped(openimages.ONE))
    (table,) = root.rglob("*segmentation*.csv")
    lines = table.read_text().splitlines()
    before = Found("openimages", root, tmp_path)
    once = before.load()
    assert before.counts["mask files that are there more than once, of which the first is taken"] == 1
    table.write_text("\n".join([*lines, *lines[1:]]) + "\n")
    twice = Found("openimages", root, tmp_path).load()
    assert [(item.id, item.texts) for item in twice.objects] == [(item.id, item.texts) for item in once.objects]
    assert len(once.objects) == twice.notes["objects listed twice, taken once"] == 2


@pytest.mark.parametrize("stored", ["00010.jpg", "00010.JPG", "00010.jpeg", "00010.png"])
@pytest.mark.parametrize("name", ["00010", "00010.jpg"])
def test_frames_of_other_suffixes(tmp_path, stored, name):
    put(tmp_path / stored, b"")
    put(tmp_path / "._00010.jpg", b"")
    found = FrameFiles(tmp_path).named(name)
    if name.endswith(".jpg") and stored.endswith("png"):
        assert found is None
    else:
        assert found is not None and found.name == stored


def test_a_frame_of_two_files_is_none(tmp_path):
    put(tmp_path / "00010.JPG", b"")
    put(tmp_path / "00010.jpeg", b"")
    assert FrameFiles(tmp_path).named("00010") is None and FrameFiles(tmp_path / "none").named("00010") is None


def test_two_masks_of_one_id_and_one_annotation_stay_two_objects(tmp_path):
    line = {"image": "a.jpg", "objects": [{"id": "1", "mask": "1.png"}, {"id": "1", "mask": "2.png"}]}
    put(tmp_path / "a.jpg", jpeg())
    for name, mask in (("1.png", box(0, 0, 40, 40)), ("2.png", box(50, 50, 90, 90))):
        test_coco.Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / name)
    put(tmp_path / "samples.jsonl", json.dumps(line).encode())
    sample = Found("folder", tmp_path, tmp_path).load()
    assert [item.id for item in sample.objects] == ["1", "1-2"]
