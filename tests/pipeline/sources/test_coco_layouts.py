"""COCO's annotations as labelling tools export them, and ids and names that collide."""

import gzip
import json

import pytest

from pipeline.sources.objects import ONE_ID, TWICE
from shards.errors import BadInput, UserError
from tests.pipeline.sources.test_coco import CATEGORIES, HEIGHT, SQUARE, WIDTH, annotation, jpeg, load_all

SPLITS = {"train": ("1.jpg", "2.jpg"), "valid": ("1.jpg",)}


def write(root, file, names, pictures, **first):
    """One object in each picture; `first` changes the first image's record."""
    images = [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names)]
    images[0] |= first
    body = {"images": images, "annotations": [annotation(n, n, SQUARE) for n in range(len(names))]}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps({**body, "categories": CATEGORIES}))
    for path in pictures:
        jpeg(root / path)
    return root


def sound(root, **options):
    samples, counts = load_all(root, **options)
    assert not [str(sample) for sample in samples.values() if isinstance(sample, BadInput)]
    assert counts["images without a file"] == 0
    return [*samples]


LAYOUTS = {
    "Roboflow": ("train/_annotations.coco.json", ["a_jpg.rf.1.jpg"], "train/a_jpg.rf.1.jpg"),
    "Roboflow, a split alone": ("_annotations.coco.json", ["a.jpg"], "a.jpg"),
    "CVAT": ("annotations/instances_default.json", ["a.jpg"], "images/default/a.jpg"),
    "CVAT, subfolders": ("annotations/instances_default.json", ["x/a.jpg"], "images/default/x/a.jpg"),
    "CVAT, a subset": ("annotations/instances_Train.json", ["a.jpg"], "images/Train/a.jpg"),
    "Datumaro": ("annotations/instances_train.json", ["a.jpg"], "images/train/a.jpg"),
    "Label Studio": ("result.json", ["images/3fd6a1b2-a.jpg"], "images/3fd6a1b2-a.jpg"),
    "Label Studio, Windows": ("result.json", [r"images\3fd6a1b2-a.jpg"], "images/3fd6a1b2-a.jpg"),
    "Label Studio, no pictures": ("result.json", ["/data/upload/7/3fd6a1b2-a.jpg"], "images/a.jpg"),
    "Label Studio, media": ("result.json", [r"..\..\label-studio\media\upload\1\3fd6a1b2-a.jpg"], "a.jpg"),
    "Label Studio, local": ("result.json", ["/data/local-files/?d=photos%5Ca.jpg"], "images/photos/a.jpg"),
    "FiftyOne": ("labels.json", ["a.jpg"], "data/a.jpg"),
    "by split": ("annotations/train.json", ["a.jpg"], "train/a.jpg"),
    "by split, images": ("train.json", ["train/a.jpg"], "images/train/a.jpg"),
    "one file": ("annotations.json", ["a.jpg"], "images/a.jpg"),
    "another machine": ("annotations/instances_train.json", ["/home/x/set/images/train/a.jpg"], "images/train/a.jpg"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_are_found_as_they_come(tmp_path, layout):
    file, names, there = LAYOUTS[layout]
    options = {"split": "Train"} if "subset" in layout else {}
    assert sound(write(tmp_path, file, names, [there]), **options) == [there]


def test_a_subset_in_another_case(tmp_path):
    assert sound(write(tmp_path, "annotations/instances_Train.json", ["a.jpg"], ["images/Train/a.jpg"])) == [
        "images/Train/a.jpg"
    ]


def test_the_splits_of_an_export_stay_apart(tmp_path):
    for split, names in SPLITS.items():
        write(tmp_path, f"{split}/_annotations.coco.json", names, [f"{split}/{name}" for name in names])
        jpeg(tmp_path / "1.jpg")  # of another set
    assert sound(tmp_path) == ["train/1.jpg", "train/2.jpg"]
    assert sound(tmp_path, split="valid") == sound(tmp_path, split="val") == ["valid/1.jpg"]
    with pytest.raises(UserError, match="annotation file; met none; wanted one instances_test"):
        load_all(tmp_path, split="test")


def test_released_annotations_come_before_exports(tmp_path):
    write(tmp_path, "result.json", ["b.jpg"], ["b.jpg"])
    assert sound(write(tmp_path, "annotations/instances_train.json", ["a.jpg"], ["a.jpg"])) == ["a.jpg"]


def test_several_exports_are_an_error(tmp_path):
    write(tmp_path, "result.json", ["b.jpg"], ["b.jpg"])
    write(tmp_path, "labels.json", ["b.jpg"], ["b.jpg"])
    with pytest.raises(UserError, match=r"annotation file; met result\.json, labels\.json; .*move the others away"):
        load_all(tmp_path)


def test_a_mac_s_hidden_file_is_no_second_annotation_file(tmp_path):
    root = write(tmp_path, "annotations/instances_train.json", ["a.jpg"], ["a.jpg"])
    (root / "annotations/._instances_train.json").write_bytes(b"\0\5\26\7")
    packed = gzip.compress((root / "annotations/instances_train.json").read_bytes())
    (root / "annotations/instances_train.json.gz").write_bytes(packed)
    assert sound(root) == ["a.jpg"]


def test_one_id_of_two_pictures_is_bad_for_both(tmp_path):
    root = write(
        tmp_path, "annotations/instances_train.json", ["1.jpg", "2.jpg", "3.jpg"], ["1.jpg", "2.jpg", "3.jpg"], id=1
    )
    samples, counts = load_all(root)
    assert [str(samples[f"{n}.jpg"]).split(";")[0] for n in (1, 2)] == ["one id for two pictures"] * 2
    assert "met image 1 is 1.jpg and 2.jpg" in str(samples["1.jpg"]) and len(samples["3.jpg"].objects) == 1
    assert counts["images that share an id with another file"] == 1 and counts["images"] == 3


def test_a_picture_that_is_listed_twice_has_one_size(tmp_path):
    root = write(tmp_path, "annotations/instances_train.json", ["1.jpg", "1.jpg"], ["1.jpg"])
    assert [len(sample.objects) for sample in load_all(root)[0].values()] == [2]
    write(root, "annotations/instances_train.json", ["1.jpg", "1.jpg"], [], width=WIDTH + 1)
    (error,) = load_all(root)[0].values()
    assert f"twice with different sizes; met [{HEIGHT}, {WIDTH + 1}] and [{HEIGHT}, {WIDTH}]" in str(error)


def test_two_pictures_that_were_put_into_one_folder(tmp_path):
    samples, _ = load_all(write(tmp_path, "annotations/instances_train.json", ["a/1.jpg", "b/1.jpg"], ["images/1.jpg"]))
    assert {*samples} == {"b/1.jpg", "images/1.jpg"}
    assert {str(error).split(";")[0] for error in samples.values()} == {"one file for several names"}


def test_objects_that_share_an_id_get_new_ones(tmp_path):
    root = write(tmp_path, "annotations/instances_train.json", ["1.jpg"], ["1.jpg"])
    file = root / "annotations/instances_train.json"
    body = json.loads(file.read_text())
    other = [[5, 5, 30, 5, 30, 30]]
    body["annotations"] = [annotation(1, 0, SQUARE), annotation(1, 0, other, 18), annotation(1, 0, [[1, 1]])]
    body["annotations"] += [annotation(1, 0, SQUARE)]  # the first once more
    file.write_text(json.dumps(body))
    (sample,) = load_all(root)[0].values()
    assert [(item.id, item.texts) for item in sample.objects] == [("1", ("person",)), ("1-2", ("dog",))]
    assert [item["id"] for item in sample.more["left_out"]] == ["1-3"]
    assert sample.notes[ONE_ID] == sample.notes[TWICE] == 1
