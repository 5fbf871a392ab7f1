"""Ids that files write in several ways, and the errors of those that fit nothing."""

import pickle

import pytest

from pipeline.ids import as_id
from tests.pipeline.built import HEIGHT, SQUARE, WIDTH, Found, box, jpeg, put, rle


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((7, 7.0, "7", " 7\n", "7.0", "7.00"), "7"),
        ((0, 0.0, -0.0, "0", "-0"), "0"),
        ((-3, -3.0, "-3"), "-3"),
        ((10**17, 1e17, "100000000000000000"), "100000000000000000"),
        (("07",), "07"),
        ((7.5, "7.5"), "7.5"),
        (("7e0",), "7e0"),
        (("x 1", " x 1"), "x 1"),
        ((True, False, None, [7], {"id": 7}, float("nan"), float("inf"), "", "  "), None),
    ],
)
def test_one_id_is_one_text(values, expected):
    assert [as_id(value) for value in values] == [expected] * len(values)


def image(number):
    return {"id": number, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}


def outline(number, image_id, category=1):
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": [SQUARE]}


def instances(root, images, annotations, categories, name="annotations/instances_train.json"):
    put(root / name, {"images": images, "annotations": annotations, "categories": categories})
    put(root / "images/1.jpg", jpeg())


def test_coco_joins_ids_of_any_kind(tmp_path):
    annotations = [outline(1, 4), outline(2.0, 4.0, "1"), outline("3", "4", 1.0), outline("x", " 4")]
    instances(tmp_path / "raw", [image("4.0")], annotations, [{"id": 1.0, "name": "cat"}])
    sample = Found("coco", tmp_path / "raw", tmp_path).load()
    assert [(one.id, one.texts) for one in sample.objects] == [(n, ("cat",)) for n in ("1", "2", "3", "x")]


def test_categories_of_one_id_and_two_names_name_nothing(tmp_path):
    categories = [
        {"id": 1, "name": "cat"},
        {"id": "1", "name": "dog"},
        {"id": 2, "name": "cup"},
        {"id": 2.0, "name": "cup"},
    ]
    instances(tmp_path / "raw", [image(4)], [outline(1, 4, 1), outline(2, 4, 2)], [*categories, {"id": 3}, "cat"])
    found = Found("coco", tmp_path / "raw", tmp_path)
    assert [one.texts for one in found.load().objects] == [(), ("cup",)]
    assert found.counts["categories that share an id: their objects have no name"] == 1
    assert found.counts["categories without an id or a name"] == 2


def test_refs_join_ids_of_any_kind(tmp_path):
    ref = {"ref_id": 1, "category_id": 1, "split": "train", "sentences": [{"sent_id": 1, "raw": "It.", "sent": "it"}]}
    refs = [{**ref, "ann_id": 5.0, "image_id": "4"}, {**ref, "ann_id": "6", "image_id": 4.0}]
    put(tmp_path / "raw/refcoco/refs(unc).p", pickle.dumps(refs, 2))
    instances(tmp_path / "raw", [image(4)], [outline(5, 4), outline(6.0, "4")], [], "refcoco/instances.json")
    sample = Found("refcoco", tmp_path / "raw", tmp_path).load()
    assert [(one.id, one.texts) for one in sample.objects] == [("5", ("It.",)), ("6", ("It.",))]


def test_flickr_joins_ids_of_any_kind(tmp_path):
    """The caption's id is a number and its region's image_id is a text."""
    caption = {"id": 9.0, "file_name": "1.jpg", "caption": "A cat on a chair.", "height": HEIGHT, "width": WIDTH}
    region = {"image_id": "9", "tokens_positive": [[0, 5]], "sam_mask": rle(box(5, 5, 40, 60))}
    put(tmp_path / "raw/annotations/flickr_mergedGT_GCG_train.json", {"images": [caption], "annotations": [region]})
    put(tmp_path / "raw/flickr30k/1.jpg", jpeg())
    sample = Found("gcg", tmp_path / "raw", tmp_path).load()
    assert [one.texts for one in sample.objects] == [("A cat",)]


def test_mevis_joins_ids_of_any_kind(tmp_path):
    frames = ["00000", "00001"]
    for name in frames:
        put(tmp_path / f"raw/train/JPEGImages/v/{name}.jpg", jpeg())
    expressions = {"0": {"exp": "It.", "anno_id": [7.0]}, "1": {"exp": "The cat.", "anno_id": ["7"]}}
    put(tmp_path / "raw/train/meta_expressions.json", {"videos": {"v": {"expressions": expressions, "frames": frames}}})
    put(tmp_path / "raw/train/mask_dict.json", {" 7": [rle(box(5, 5, 40, 60))] * 2})
    sample = Found("mevis", tmp_path / "raw", tmp_path, frames=2).load()
    assert [(one.id, one.texts) for one in sample.objects] == [("7", ("It.", "The cat."))]


def test_the_closing_table_says_what_finding_the_inputs_lost(tmp_path, here):
    annotations = [outline(1, 4), outline(2, 99), {"segmentation": []}, "x"]
    listed = [image(4), image("4"), {"file_name": "2.jpg"}]
    instances(tmp_path / "raw", listed, annotations, [{"id": 1, "name": "[/red]"}])
    done = here("shard", "--source", "coco", "--root", tmp_path / "raw", "--out", tmp_path, "--workers", 1)
    assert done.returncode == 0
    for name in ("objects of no listed image", "images listed twice", "images of another shape"):
        (line,) = [line for line in done.stdout.splitlines() if f"found: {name} " in line]
        assert line.rstrip("│ ").endswith(" 1"), line
    (line,) = [line for line in done.stdout.splitlines() if "found: objects of another shape " in line]
    assert line.rstrip("│ ").endswith(" 2"), line
    assert "images without a file" not in done.stdout  # there was none
