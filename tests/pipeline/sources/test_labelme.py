"""Labelme's files: one JSON per picture."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.labelme import BY_JSON, IGNORED
from shards.errors import BadInput, UserError
from tests.pipeline.built import HEIGHT, WIDTH, Found, box, jpeg, put, through

SHAPE = {"label": "cat", "points": [[10, 20], [50, 20], [50, 60], [10, 60]], "group_id": None, "shape_type": "polygon"}


def shape(**more):
    return {**SHAPE, **more}


def write(root, *shapes, name="a", **more):
    """A picture and its JSON."""
    body = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": "A" * 100}
    put(root / f"{name}.jpg", jpeg())
    return put(root / f"{name}.json", {**body, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more})


def test_every_shape_that_has_an_area(tmp_path):
    small = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(small, "PNG")
    packed = base64.b64encode(small.getvalue()).decode()
    write(
        tmp_path,
        shape(),
        shape(points=[[50, 60], [10, 20]], shape_type="rectangle", label="dog", flags={"cut": True}),
        shape(points=[[40, 40], [40, 60]], shape_type="circle", description="round"),
        shape(points=[[7, 5], [8, 6]], shape_type="mask", mask=packed),
        {"label": "old", "points": SHAPE["points"]},
    )
    sample = Found("folder", tmp_path, tmp_path).load()
    masks = [np.asarray(mask) for mask in sample.frames[0].masks]
    assert [item.texts for item in sample.objects] == [("cat",), ("dog",), ("cat",), ("cat",), ("old",)]
    for square in (masks[0], masks[1], masks[4]):
        assert np.array_equal(square, box(20, 10, 60, 50))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = (rows - 40) ** 2 + (columns - 40) ** 2 <= 20**2
    assert np.count_nonzero(masks[2] ^ disc) < 0.03 * np.count_nonzero(disc)
    assert [tuple(place) for place in np.argwhere(masks[3])] == [(5, 7), (6, 7), (6, 8)]
    assert sample.objects[1].more["flags"] == {"cut": True} and sample.objects[2].more["description"] == "round"
    assert "imageData" not in sample.more["source_json"]


def test_shapes_of_one_group_are_one_object(tmp_path):
    far = [[100, 70], [120, 70], [120, 90]]
    write(tmp_path, shape(group_id=1), shape(), shape(group_id=1, points=far), shape(group_id=1, label="dog"))
    sample = Found("folder", tmp_path, tmp_path).load()
    first, *_ = masks = [np.asarray(mask) for mask in sample.frames[0].masks]
    assert len(masks) == 3 and first[75, 118] and first[30, 30] and not masks[1][75, 118]
    assert [item.texts for item in sample.objects] == [("cat",), ("cat",), ("dog",)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"shape_type": "linestrip"}, "a shape without an area"),
        ({"shape_type": "point", "points": [[1, 2]]}, "a shape without an area"),
        ({"points": []}, "broken points of a shape"),
        ({"points": [[1, 2], [3]]}, "broken points of a shape"),
        ({"points": [[1, 2], [3, "x"], [4, 5]]}, "broken points of a shape"),
        ({"shape_type": "circle"}, "broken points of a shape"),
        ({"shape_type": "mask", "mask": "%"}, "broken mask of a shape"),
        ({"shape_type": "mask"}, "broken mask of a shape"),
        ({"points": [[200, 200], [220, 200], [220, 230]]}, "empty mask"),
    ],
)
def test_shapes_that_cannot_be_used_are_named(tmp_path, fields, why):
    write(tmp_path, shape(), shape(**fields))
    sample = Found("folder", tmp_path, tmp_path).load()
    assert len(sample.objects) == 1 and sample.more["left_out"][0]["reason"] == why


def test_a_mask_that_leaves_its_picture(tmp_path):
    small = io.BytesIO()
    Image.new("L", (9, 9), 255).save(small, "PNG")
    packed = base64.b64encode(small.getvalue()).decode()
    write(tmp_path, shape(), shape(points=[[WIDTH - 5, 5], [1, 1]], shape_type="mask", mask=packed))
    sample = Found("folder", tmp_path, tmp_path).load()
    assert sample.more["left_out"][0]["reason"] == "a mask that leaves its picture"


def test_labels_that_are_no_objects(tmp_path):
    write(tmp_path, shape(), shape(label="__ignore__"), shape(label="_background_"))
    sample = Found("folder", tmp_path, tmp_path).load()
    assert len(sample.objects) == 1 and sample.notes[IGNORED] == 2


@pytest.mark.parametrize("stated", ["a.jpg", r"..\photos\a.jpg", "/home/x/a.jpg", "A.JPG", "./a.jpg", r"C:\x\a.jpg"])
def test_pictures_are_found_in_the_folder_of_their_json(tmp_path, stated):
    write(tmp_path / "x", shape(), imagePath=stated)
    sample = Found("folder", tmp_path, tmp_path).load("x/a.json")
    assert sample.frames[0].name == "x/a.jpg" and BY_JSON not in sample.notes


def test_pictures_elsewhere_and_renamed(tmp_path):
    write(tmp_path / "labels", shape(), name="b", imagePath="../images/b.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels/b.jpg").rename(tmp_path / "images/b.jpg")
    write(tmp_path / "labels", shape(), name="c", imagePath="before.jpg")
    found = Found("folder", tmp_path, tmp_path)
    assert found.paths == ["labels/b.json", "labels/c.json"]
    assert found.load("labels/b.json").frames[0].name == "images/b.jpg"
    assert found.load("labels/c.json").frames[0].name == "labels/c.jpg"
    assert found.load("labels/c.json").notes[BY_JSON] == 1


def test_a_copied_json_is_of_two_pictures(tmp_path):
    write(tmp_path, shape())
    write(tmp_path, shape(), name="b", imagePath="a.jpg")
    with pytest.raises(BadInput, match=r"a json of two pictures; met imagePath 'a\.jpg' beside b\.jpg"):
        Found("folder", tmp_path, tmp_path).load("b.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": 3}', "not labelme's json"),
        ("[1]", "not labelme's json"),
        ('{"shapes": [1]}', "not labelme's json"),
        ('{"shapes": []', "not whole JSON"),
        ('{"shapes": [], "imagePath": "none.jpg"}', "no such file; met no 'none.jpg' in "),
        ('{"shapes": [], "imagePath": "a.jpg"}', "no annotated object"),
    ],
)
def test_other_files_go_to_the_ledger(tmp_path, text, message):
    write(tmp_path, shape())
    (tmp_path / "z.json").write_text(text)
    found = Found("folder", tmp_path, tmp_path)
    with pytest.raises(BadInput, match=message):
        found.load("z.json")
    assert len(found.load("a.json").objects) == 1


def test_a_size_that_differs_is_bad(tmp_path):
    write(tmp_path, shape(), imageHeight=HEIGHT + 1)
    with pytest.raises(BadInput, match="picture and annotation differ in size"):
        Found("folder", tmp_path, tmp_path).load()


def test_a_folder_of_other_json_is_not_labelme_s(tmp_path):
    put(tmp_path / "a.json", {"images": []})
    with pytest.raises(UserError, match=r"not a folder of this kind.*labelme"):
        Found("folder", tmp_path, tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    write(tmp_path / "raw/x", shape(), shape(points=[[1, 1], [30, 30]], shape_type="rectangle", label="dog"))
    write(tmp_path / "raw/x", shape(), name="b")
    put(tmp_path / "raw/x/c.jpg", jpeg())
    put(tmp_path / "raw/x/d.gif", b"")
    put(tmp_path / "raw/x/._a.json", b"\0\5\26\7")
    summary, samples = through("folder", tmp_path / "raw", tmp_path / "work")
    assert [*samples] == ["x/a.json", "x/b.json"] and json.dumps(samples).count('"dog"') == 1
    found = summary.manifest.options["found"]
    assert found["images without a json of their name"] == found["files of a kind that is not taken: *.gif"] == 1
    assert found["hidden files passed over"] == 1 and found["annotation files"] == 2
