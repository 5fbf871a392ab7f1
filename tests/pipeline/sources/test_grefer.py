"""gRefCOCO: expressions of one, several and no objects."""

import pickle

import numpy as np
import pytest

from shards.errors import BadInput, DroppedInput, UserError
from tests.pipeline.built import HEIGHT, SQUARE, WIDTH, Found, box, jpeg, put, rle, through

SECOND = box(10, 70, 50, 110)
FIRST = box(20, 10, 60, 50)
NAME = "COCO_train2014_{:012d}.jpg"


def ref(number, ann_id, *sentences, image=7, split="train", **more):
    described = [{"sent_id": 10 * number + i, "raw": t, "sent": t.lower()} for i, t in enumerate(sentences)]
    fields = {"ref_id": number, "ann_id": ann_id, "image_id": image, "category_id": [1], "split": split}
    return {**fields, "no_target": ann_id == [-1], "sentences": described, "file_name": NAME.format(image), **more}


REFS = [
    ref(1, [1, 2], "Both of them"),
    ref(2, [1], "the left one"),
    ref(3, [-1], "a zebra", "A ghost"),
    ref(4, [-1], "nobody", image=8),
    ref(5, [3], "other split", image=9, split="val"),
    ref(6, [1], "a picture that is not listed", image=99),
]


def write_grefer(root, refs=None, annotations=None, form="json", pictures=(7, 8, 9)):
    images = [{"id": n, "file_name": NAME.format(n), "height": HEIGHT, "width": WIDTH} for n in (7, 8, 9)]
    if annotations is None:
        annotations = [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": rle(SECOND), "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0},
        ]
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    put(root / "grefcoco/instances.json", body)
    refs = [ref(1, [1, 2], "both of them"), *REFS[1:]] if refs is None else refs
    put(root / f"grefcoco/grefs(unc).{form}", pickle.dumps(refs, 0) if form == "p" else refs)
    for number in pictures:
        put(root / "images/train2014" / NAME.format(number), jpeg())
    return root


def load(root, number=7, **given):
    found = Found("grefcoco", root, root, **given)
    return found.load(f"images/train2014/{NAME.format(number)}"), found.counts


@pytest.mark.parametrize("form", ["json", "p"])
def test_expressions_name_their_objects(tmp_path, form):
    sample, counts = load(write_grefer(tmp_path, REFS, form=form))
    assert [(item.id, item.texts, item.more["category"]) for item in sample.objects] == [
        ("1", ("the left one",), "cat"),
        ("2", (), "cat"),
    ]
    first, second = (np.asarray(mask) for mask in sample.frames[0].masks)
    assert np.array_equal(first, FIRST) and np.array_equal(second, SECOND)
    assert [(one["id"], one["text"], one["objects"]) for one in sample.more["expressions"]] == [
        (10, "Both of them", ["1", "2"]),
        (20, "the left one", ["1"]),
        (30, "a zebra", []),
        (31, "A ghost", []),
    ]
    assert sample.more["expressions"][0]["sent"] == "both of them" and sample.more["expressions"][3]["ref_id"] == 3
    assert {name: count for name, count in counts.items() if count} == {
        **{"images": 2, "refs of no listed image": 1, "refs": 4, "expressions": 5, "objects": 2},
        **{"expressions of several objects": 1, "expressions without an object": 3},
    }


def test_a_picture_of_which_no_expression_has_an_object_is_a_sample_without_objects(tmp_path):
    sample, _ = load(write_grefer(tmp_path), 8)
    assert sample.objects == () and sample.frames[0].masks == () and sample.segmentable
    assert [(one["text"], one["objects"]) for one in sample.more["expressions"]] == [("nobody", [])]
    assert sample.frames[0].picture.size == (WIDTH, HEIGHT) and sample.more["image"]["id"] == 8


def test_a_picture_without_a_sentence_is_no_sample(tmp_path):
    with pytest.raises(DroppedInput, match="no expression; met 0 sentences"):
        load(write_grefer(tmp_path, [ref(1, [-1], image=8)]), 8)


def test_splits(tmp_path):
    root = write_grefer(tmp_path)
    assert load(root, 9, split="val")[0].objects[0].texts == ("other split",)
    assert load(root, 9, split="all")[1]["refs"] == 5
    with pytest.raises(UserError, match="no ref of this split; met train, val; wanted testA"):
        load(root, split="testA")
    with pytest.raises(UserError, match=r"grefs\(google\)\.json: no such file; met grefs\(unc\)\.json; .*--split-by"):
        load(root, split_by="google")


@pytest.mark.parametrize("wrong", [66, 3])
def test_objects_without_an_annotation_of_the_image_are_named(tmp_path, wrong):
    """Annotation 66 is nowhere, 3 belongs to another picture."""
    sample, counts = load(write_grefer(tmp_path, [ref(1, [1, wrong], "two"), ref(2, [wrong], "gone")]))
    assert [item.id for item in sample.objects] == ["1"]
    assert [(item["id"], item["reason"]) for item in sample.more["left_out"]] == [(str(wrong), "no such annotation")]
    assert sample.more["expressions"][0]["objects"] == ["1", str(wrong)]
    assert counts["objects without an annotation of their image"] == 1
    with pytest.raises(BadInput, match=f"no object that can be used: no such annotation; met object {wrong}"):
        load(write_grefer(tmp_path, [ref(2, [wrong], "gone")]))


def test_two_annotations_of_one_id(tmp_path):
    twice = [{"id": 1, "image_id": 7, "category_id": 1, "segmentation": [SQUARE]}] * 2
    with pytest.raises(BadInput, match="one id for two objects; met annotation 1 of images/train2014/"):
        load(write_grefer(tmp_path, [ref(1, [1], "it")], twice))


@pytest.mark.parametrize(
    ("ann_id", "no_target"), [([1], True), ([-1], False), ([-1, 1], False), ([-1, 1], True), ([], False), ([], None)]
)
def test_contradictions_go_to_the_ledger(tmp_path, ann_id, no_target):
    root = write_grefer(tmp_path, [ref(1, [1], "it"), ref(2, ann_id, "that", no_target=no_target)])
    with pytest.raises(BadInput, match="an expression with and without objects; met ref 2: ann_id"):
        load(root)


@pytest.mark.parametrize(
    ("ann_id", "no_target", "objects"),
    [([-1], None, []), (-1, True, []), ([], True, []), (1, None, ["1"]), ([1, 1, "2"], 0, ["1", "2"])],
)
def test_other_forms_of_refs(tmp_path, ann_id, no_target, objects):
    root = write_grefer(tmp_path, [ref(1, [1], "it"), ref(2, ann_id, "that", no_target=no_target)])
    assert load(root)[0].more["expressions"][1]["objects"] == objects


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"ann_id": [[1]]},
            r"ref 1: not gRefCOCO's refs; met ann_id '\[\[1\]\]', which is no list of numbers or texts",
        ),
        ({"ann_id": None}, "met ann_id 'None'"),
        ({"image_id": {}}, "met image_id"),
        ({"no_target": "no"}, "met no_target 'no', which is neither true nor false"),
        ({"sentences": [{"sent_id": 1, "raw": 5, "sent": ""}]}, "met a sentence that is no text"),
        ({"sentences": 5}, "not gRefCOCO's refs"),
    ],
)
def test_refs_of_another_shape(tmp_path, given, why):
    with pytest.raises(UserError, match=why):
        load(write_grefer(tmp_path, [{**ref(1, [1], "it"), **given}]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[5]", "not gRefCOCO's refs"),
        ('[{"split": "train"}]', "met no 'ann_id'|met no 'image_id'"),
        ("{}", "no ref of this split; met no ref at all"),
        ('[{"split"', "not whole JSON"),
    ],
)
def test_files_of_another_shape(tmp_path, text, why):
    root = write_grefer(tmp_path)
    (root / "grefcoco/grefs(unc).json").write_text(text)
    with pytest.raises(UserError, match=why):
        load(root)


def test_missing_pictures_are_bad(tmp_path):
    root = write_grefer(tmp_path)
    (root / "images/train2014" / NAME.format(7)).unlink()
    found = Found("grefcoco", root, root)
    assert found.counts["images without a file"] == 1
    with pytest.raises(BadInput, match="no such file"):
        found.load(found.paths[0])


def test_through_shards_verify_and_preview(tmp_path):
    summary, samples = through("grefcoco", write_grefer(tmp_path / "raw"), tmp_path / "work")
    assert summary.manifest.left_out == {} and summary.manifest.version == 3
    meta, without = samples.values()
    assert [one["objects"] for one in meta["expressions"]] == [["1", "2"], ["1"], [], []]
    assert without["objects"] == [] and {*without["crc32"]} == {"pixel_values", "g_pixel_values"}
