"""The ledger holds why an input cannot be used: the first reason, with its values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.faults import unusable
from pipeline.masks import has_pixels
from shards.errors import BadInput
from tests.pipeline.built import HEIGHT, SQUARE, WIDTH, Found, box, counts, jpeg, put, rle
from tests.pipeline.sources import test_sav_video, videos

MASK = box(10, 10, 60, 70)
FRAMES = ["00000", "00001", "00002"]


def test_the_first_reason_has_its_values_and_the_others_are_counted():
    size = BadInput("mask and picture differ in size", met="5 x 7", wanted="6 x 7", do="cut it")
    error = unusable("object", [("a", size), ("b", BadInput("empty mask", met="0 pixels")), ("c", size)])
    assert str(error) == (
        "no object that can be used: mask and picture differ in size; "
        "met object a: 5 x 7, the first of 3 (beside 1 x empty mask); wanted 6 x 7; cut it"
    )
    assert unusable("object", [("a", size)]).met == "object a: 5 x 7"


def coco(tmp_path, **annotation):
    annotations = [{"id": 5, "image_id": 1, "category_id": 1, **annotation}]
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    put(tmp_path / "raw/annotations/instances_train.json", {"images": images, "annotations": annotations})
    put(tmp_path / "raw/images/1.jpg", jpeg())
    return Found("coco", tmp_path / "raw", tmp_path)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            {"segmentation": [], "bbox": [1, 2, 3, 4]},
            "no mask; met object 5: an empty list of polygons, as of a box alone",
        ),
        ({"bbox": [1, 2, 3, 4]}, "no mask; met object 5: no segmentation, as of a box alone"),
        ({"segmentation": None}, "no mask; met object 5: no segmentation, as of a box alone; wanted polygons"),
        ({"segmentation": [[1, 2, 3, 4]]}, f"empty mask; met object 5: 0 pixels of {HEIGHT} x {WIDTH}"),
        (
            {"segmentation": rle(MASK[:-1])},
            rf"mask and picture differ in size; met object 5: size \[{HEIGHT - 1}, {WIDTH}\]; wanted",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, 5]]},
            r"broken polygon; met object 5: \[1, 2, 3, 4, 5\]; wanted a",
        ),
    ],
)
def test_an_image_of_coco(tmp_path, annotation, message):
    with pytest.raises(BadInput, match=f"no object that can be used: {message}") as caught:
        coco(tmp_path, **annotation).load()
    assert "; ;" not in str(caught.value) and "met ;" not in str(caught.value)


def mevis(tmp_path, masks, ids=(7,)):
    for name in FRAMES:
        put(tmp_path / f"raw/train/JPEGImages/v/{name}.jpg", jpeg())
    expressions = {str(n): {"exp": "It.", "anno_id": [number]} for n, number in enumerate(ids)}
    body = {"videos": {"v": {"expressions": expressions, "frames": FRAMES}}}
    put(tmp_path / "raw/train/meta_expressions.json", body)
    put(tmp_path / "raw/train/mask_dict.json", masks)
    return Found("mevis", tmp_path / "raw", tmp_path, frames=2)


BROKEN = {"size": [HEIGHT, WIDTH], "counts": "MDAwMDAw"}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"7": [rle(MASK)] * 2}, "masks do not fit the frames; met object 7: 2 masks; wanted 3, one a frame"),
        ({"7": [rle(MASK)] * 90}, "masks do not fit the frames; met object 7: 90 masks; wanted 3"),
        ({"7": 5}, "masks do not fit the frames; met object 7: no list: 5"),
        ({"8": [rle(MASK)] * 3}, "no masks; met object 7: no list; wanted a list of 3"),
        ({"7": [None, BROKEN, None]}, "broken run lengths; met object 7: "),
        ({"7": [None, {"counts": "zzz"}, {}]}, "broken run lengths; met object 7: "),
        ({"7": [{"size": [HEIGHT, WIDTH], "counts": [3]}] * 3}, "broken run lengths; met object 7: 3 pixels; wanted"),
    ],
)
def test_a_video_of_mevis(tmp_path, masks, message):
    with pytest.raises(BadInput, match=f"no object that can be used: {message}"):
        mevis(tmp_path, masks).load()


def test_a_video_that_shows_nothing_and_has_no_fault(tmp_path):
    with pytest.raises(BadInput, match="no visible object; met 3 frames without one"):
        mevis(tmp_path, {"7": [None, {}, counts(np.zeros((HEIGHT, WIDTH), bool))]}).load()


def test_one_sound_object_keeps_the_video_and_the_other_is_named(tmp_path):
    sample = mevis(tmp_path, {"7": [rle(MASK)] * 3, "9": [rle(MASK)] * 4}, ids=(7, 9)).load()
    expected = {"id": "9", "reason": "masks do not fit the frames", "detail": "met 4 masks; wanted 3, one a frame"}
    assert sample.more["left_out"] == [expected]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (rle(np.zeros((HEIGHT, WIDTH), bool)), "empty mask; met region 3: 0 pixels in 1 masks"),
        (
            {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
            "broken run lengths; met region 3: 10 pixels; wanted 12288",
        ),
        (None, "no mask; met region 3: no segmentation"),
    ],
)
def test_a_picture_of_describe_anything(tmp_path, mask, message):
    sound = {"image": "1.jpg", "ann_id": 4, "mask_rle": rle(MASK), "caption": "A cat."}
    broken = {**sound, "ann_id": 3, "mask_rle": mask}
    put(tmp_path / "raw/LVIS/images/1.jpg", jpeg())
    put(tmp_path / "raw/LVIS/annotations.json", {"a": [broken]})
    with pytest.raises(BadInput, match=f"no region that can be used: {message}"):
        Found("dam", tmp_path / "raw", tmp_path).load()
    put(tmp_path / "raw/LVIS/annotations.json", {"a": [broken, sound]})
    sample = Found("dam", tmp_path / "raw", tmp_path).load()
    assert [one.id for one in sample.objects] == ["4"]
    assert [(one["id"], message.startswith(one["reason"])) for one in sample.more["left_out"]] == [("3", True)]
    assert sample.more["left_out"][0]["detail"]


def test_a_record_of_osprey(tmp_path):
    record = {"id": 12, "file_name": "1.jpg", "annotation": [{"segmentation": [SQUARE]}], "description": []}
    put(tmp_path / "raw/Osprey-724K/osprey_short_form.json", [record])
    put(tmp_path / "raw/coco/train2017/1.jpg", jpeg())
    with pytest.raises(BadInput, match=r"no record that can be used: no text; met record 12 of osprey_short"):
        Found("osprey", tmp_path / "raw", tmp_path).load()


def test_frames_of_sav_whose_run_lengths_are_broken_are_counted_and_no_absence(tmp_path):
    videos.write_video(tmp_path / "video.mp4", test_sav_video.FRAMES)
    test_sav_video.write_sav_video(root := tmp_path / "raw", tmp_path / "video.mp4")
    file = next(root.rglob("*_manual.json"))
    annotation = json.loads(file.read_text())
    shown = [frame for frame in annotation["masklet"] if has_pixels(frame[0])]
    found = Found("sav-video", root, tmp_path, split="manual")
    path = next(path for path in found.paths if path.endswith("#manual-0"))
    for frame in shown[:-2]:
        frame[0]["counts"] = "~"
    put(file, annotation)
    broken = "annotated frames passed over for broken run lengths"
    assert found.load(path).notes[broken] == len(shown) - 2 > 0
    for frame in shown:
        frame[0]["counts"] = "~"
    put(file, annotation)
    message = r"no mask that can be used: broken run lengths; met mask of annotated frame \d+: '~'"
    with pytest.raises(BadInput, match=message):
        found.load(path)
