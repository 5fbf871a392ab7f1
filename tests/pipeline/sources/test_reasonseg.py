"""ReasonSeg: a JSON beside each picture, with questions, a target, and regions to ignore."""

import json

import numpy as np
import pytest

from pipeline.masks import from_coco
from pipeline.sources.reasonseg import FLAGS, NO_AREA, OLD_ENCODING
from shards.errors import BadInput, DroppedInput, UserError
from tests.pipeline.built import HEIGHT, WIDTH, Found, box, jpeg, put, through

LARGE = (20, 10, 80, 60)  # top, left, bottom, right; an outline belongs to its polygon
SMALL = (30, 20, 40, 50)
TEXTS = ["What may it drink from?", "Which thing holds water?"]


def shape(top, left, bottom, right, label="target", **more):
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": corners, "group_id": None, **more}


def content(*shapes, **more):
    return {"text": TEXTS, "is_sentence": True, "shapes": shapes, **more}


def write(root, name, *shapes, split="train", **more):
    put(root / split / f"{name}.jpg", jpeg())
    return put(root / split / f"{name}.json", content(*shapes, **more))


def filled(top, left, bottom, right):
    return box(top, left, bottom + 1, right + 1)


def load(root, **given):
    return Found("reasonseg", root, root, **given).load()


def test_the_target_is_one_object_with_all_texts(tmp_path):
    other = (5, 90, 25, 120)
    write(tmp_path, "a", shape(*LARGE), shape(*other, label="Target 2"))
    sample = load(tmp_path)
    (target,) = sample.objects
    assert (target.id, target.texts, target.more) == ("target", tuple(TEXTS), {"is_sentence": True})
    assert np.array_equal(np.asarray(sample.frames[0].masks[0]), filled(*LARGE) | filled(*other))
    assert sample.more == {"split": "train"} and not sample.notes


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_shapes_are_over_larger_ones_in_any_order(tmp_path, order):
    inside = (32, 22, 36, 30)  # a target in the ignored hole of a target
    shapes = [shape(*SMALL, label="ignore"), shape(*LARGE), shape(*inside)][::order]
    write(tmp_path, "a", *shapes)
    sample = load(tmp_path)
    hole = filled(*SMALL) & ~filled(*inside)
    assert np.array_equal(np.asarray(sample.frames[0].masks[0]), filled(*LARGE) & ~hole)
    assert np.array_equal(from_coco(sample.more["ignore"], HEIGHT, WIDTH), hole)
    assert len(sample.objects) == 1


def test_a_target_over_a_larger_region_to_ignore(tmp_path):
    write(tmp_path, "a", shape(*SMALL), shape(*LARGE, label="IGNORED"))
    sample = load(tmp_path)
    assert np.array_equal(np.asarray(sample.frames[0].masks[0]), filled(*SMALL))
    assert np.array_equal(from_coco(sample.more["ignore"], HEIGHT, WIDTH), filled(*LARGE) & ~filled(*SMALL))


def test_polygons_and_their_edges(tmp_path):
    """Corners are cut to whole pixels; the triangle's pixels are those on or within its outline."""
    triangle = shape(0, 0, 0, 0, points=[[10.9, 10.2], [40.7, 10.9], [10.1, 40.99]])
    write(tmp_path, "a", triangle)
    mask = np.asarray(load(tmp_path).frames[0].masks[0])
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    assert np.array_equal(mask, (rows >= 10) & (columns >= 10) & (rows + columns <= 50))


def test_parts_outside_the_picture_are_cut_off(tmp_path):
    write(tmp_path, "a", shape(-50, -7, 20, 30))
    assert np.array_equal(np.asarray(load(tmp_path).frames[0].masks[0]), filled(0, 0, 20, 30))


def test_flags_and_shapes_without_an_area_are_counted(tmp_path):
    write(tmp_path, "a", shape(*LARGE), shape(*SMALL, label="Flag"), shape(*SMALL, points=[[1, 1], [5, 5]]))
    sample = load(tmp_path)
    assert np.array_equal(np.asarray(sample.frames[0].masks[0]), filled(*LARGE))
    assert sample.notes == {FLAGS: 1, NO_AREA: 1}


def test_windows_1252(tmp_path):
    file = write(tmp_path, "a", shape(*LARGE))
    file.write_bytes(json.dumps(content(shape(*LARGE), text=["caf\u00e9"]), ensure_ascii=False).encode("cp1252"))
    sample = load(tmp_path)
    assert sample.objects[0].texts == ("caf\u00e9",) and sample.notes[OLD_ENCODING] == 1


def test_turned_pictures_are_upright_as_opencv_reads_them(tmp_path):
    write(tmp_path, "a", shape(*LARGE))
    put(tmp_path / "train/a.jpg", jpeg(orientation=6))
    assert load(tmp_path).frames[0].picture.size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"label": None}, "a shape without a label"),
        ({"shape_type": "rectangle"}, "a shape that is no polygon; met rectangle"),
        ({"points": [[1, 2], [3]]}, "broken points of a shape"),
        ({"points": "x"}, "broken points of a shape"),
        ({"points": [[1, 2], [3, 4], [5, 1e9]]}, "broken points of a shape"),
    ],
)
def test_a_shape_that_cannot_be_read_makes_its_picture_bad(tmp_path, given, why):
    write(tmp_path, "a", shape(*LARGE), {**shape(*SMALL), **given})
    with pytest.raises(BadInput, match=why):
        load(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        *({"text": "one"}, {"text": [5]}, {"text": None}, {"is_sentence": 1}, {"is_sentence": None}),
        *({"shapes": {}}, {"shapes": [5]}),
    ],
)
def test_json_of_another_shape(tmp_path, given):
    write(tmp_path, "a", shape(*LARGE), **given)
    with pytest.raises(BadInput, match="not ReasonSeg's json; met "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"), [("[1]", "not ReasonSeg's json"), ('{"text"', "not whole JSON"), ("", "JSON")]
)
def test_files_that_are_no_such_json(tmp_path, text, why):
    write(tmp_path, "a", shape(*LARGE)).write_text(text)
    with pytest.raises(BadInput, match=why):
        load(tmp_path)


def test_a_picture_without_shapes_is_a_sample_without_objects(tmp_path):
    write(tmp_path, "a")
    sample = load(tmp_path)
    assert sample.objects == () and sample.frames[0].masks == () and sample.segmentable
    expressions = [{"id": str(n), "text": text, "objects": []} for n, text in enumerate(TEXTS)]
    assert sample.more == {"split": "train", "is_sentence": True, "expressions": expressions}


@pytest.mark.parametrize("given", [{"label": "ignore"}, {"label": "flag"}, {"points": [[1, 1], [5, 5]]}])
def test_pictures_with_other_shapes_than_a_target_are_no_samples(tmp_path, given):
    write(tmp_path, "a", {**shape(*SMALL), **given})
    with pytest.raises(DroppedInput, match="no annotated object"):
        load(tmp_path)


@pytest.mark.parametrize("hidden", [(200, 200, 220, 220), SMALL])
def test_a_target_without_pixels_is_bad(tmp_path, hidden):
    """Outside of the picture, or below a region to ignore of the same size."""
    write(tmp_path, "a", shape(*SMALL, label="ignore"), shape(*hidden))
    with pytest.raises(BadInput, match="no object that can be used: empty mask"):
        load(tmp_path)


def test_files_that_are_alone_or_ambiguous_are_bad(tmp_path):
    write(tmp_path, "a", shape(*LARGE)).unlink()
    put(tmp_path / "train/b.json", content(shape(*LARGE)))
    write(tmp_path, "c", shape(*LARGE))
    put(tmp_path / "train/c.png", jpeg())
    found = Found("reasonseg", tmp_path, tmp_path)
    reasons = {}
    for path in found.paths:
        with pytest.raises(BadInput) as caught:
            found.load(path)
        reasons[path] = caught.value.what
    assert reasons == {
        "train/a.jpg": "an image without its json",
        "train/b.json": "a json without its image",
        "train/c.jpg": "a json of two pictures",
        "train/c.png": "a json of two pictures",
    }
    assert found.counts["images without a json"] == found.counts["jsons without an image"] == 1


@pytest.mark.parametrize("base", ["", "ReasonSeg", "reason_seg/ReasonSeg"])
def test_splits_are_folders(tmp_path, base):
    write(tmp_path / base, "a", shape(*LARGE))
    write(tmp_path / base, "b", shape(*LARGE), split="val")
    sample = load(tmp_path, split="val")
    assert sample.path == f"{base}/val/b.jpg".lstrip("/") and sample.more["split"] == "val"
    for split in ("test", "", "..", "val/x"):
        with pytest.raises(UserError, match=r"no such split; met .*; there are train, val"):
            load(tmp_path, split=split)


def test_through_shards_verify_and_preview(tmp_path):
    write(tmp_path / "raw", "a", shape(*LARGE), shape(*SMALL, label="ignore"))
    write(tmp_path / "raw", "b", shape(*LARGE), text=["cup"], is_sentence=False)
    _, samples = through("reasonseg", tmp_path / "raw", tmp_path / "work")
    a, b = samples.values()
    assert a["ignore"]["size"] == [HEIGHT, WIDTH] and "ignore" not in b
    assert [meta["objects"][0]["is_sentence"] for meta in (a, b)] == [True, False]
    assert a["objects"][0]["texts"] == TEXTS and len(a["objects"]) == 1
