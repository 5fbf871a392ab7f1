"""Osprey-724K: regions, and the conversations and descriptions that name them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.finder import OUTSIDE
from pipeline.regions import LEFT_OUT, SCALED
from pipeline.sources.osprey import OTHER_SHAPE, RECORDS
from shards.errors import BadInput, UserError
from shards.manifest import read_ledger
from tests.pipeline.built import HEIGHT, SQUARE, WIDTH, Found, box, counts, jpeg, put, rle, through

NAME = "000000000009.jpg"
PLACE = f"coco/train2017/{NAME}"
FIRST = box(5, 5, 45, 60)
SECOND = box(30, 40, 90, 120)
THIRD = box(50, 3, 80, 33)


def record(annotation=None, **more):
    masks = [FIRST, SECOND] if annotation is None else annotation
    regions = [{"segmentation": rle(m) if isinstance(m, np.ndarray) else m, "bbox": [1, 2, 3, 4]} for m in masks]
    return {"file_name": NAME, "height": HEIGHT, "width": WIDTH, "annotation": regions, **more}


def described(annotation=None, **more):
    count = 2 if annotation is None else len(annotation)
    return record(annotation, description=[f"<region{n}>: Thing {n}." for n in range(1, count + 1)], **more)


def talk(*values):
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def write(root: Path, *records, file="detail_description", picture=None, place=PLACE) -> Path:
    put(root / f"Osprey-724K/osprey_{file}.json", list(records))
    put(root / place, picture or jpeg())
    return root


def load(root: Path, *records, **more):
    return Found("osprey", write(root / "raw", *records, **more), root).load()


def reason(root: Path, *records, **more) -> str:
    with pytest.raises(BadInput) as caught:
        load(root, *records, **more)
    assert caught.value.met
    return f"{caught.value.what}: {caught.value.met}"


def test_the_three_encodings_give_one_mask(tmp_path):
    drawn = box(20, 10, 60, 50)
    sample = load(tmp_path, described([[SQUARE], counts(drawn), rle(drawn)]))
    assert len(sample.objects) == 3  # three encodings, so three regions
    for mask in sample.frames[0].masks:
        assert np.array_equal(mask, drawn)


def test_overlapping_polygons_of_a_region_are_united(tmp_path):
    sample = load(tmp_path, described([[SQUARE, SQUARE, [60, 60, 90, 60, 90, 80, 60, 80]]]))
    assert np.array_equal(sample.frames[0].masks[0], box(20, 10, 60, 50) | box(60, 60, 80, 90))


def test_descriptions_are_texts_of_their_regions_and_stand_whole_in_the_record(tmp_path):
    descriptions = ["<region2>: The SECOND, as it stands. ", "<region1>:first"]
    sample = load(tmp_path, record(description=descriptions, id=7))
    assert [one.texts for one in sample.objects] == [("first",), ("The SECOND, as it stands. ",)]
    (kept,) = sample.more["records"]
    assert kept["description"] == descriptions and kept["id"] == 7
    assert kept["regions"] == [one.id for one in sample.objects]
    assert sample.objects[0].more["annotations"][0]["bbox"] == [1, 2, 3, 4]


def test_descriptions_under_the_other_key(tmp_path):
    sample = load(tmp_path, record(descriptions=["<region1>: a", "<region2>: b"]))
    assert [one.texts for one in sample.objects] == [("a",), ("b",)]


def test_descriptions_of_another_shape_go_by_their_order_and_are_counted(tmp_path):
    sample = load(tmp_path, record(description=["no region here", "<region2>: b"]))
    assert [one.texts for one in sample.objects] == [("no region here",), ("b",)]
    assert sample.notes[OTHER_SHAPE] == 1


def test_conversations_keep_their_words_and_the_order_of_their_regions(tmp_path):
    turns = talk("Is <region2> left of <region1>?", "<region2>: yes", "And <region3>?", "No")
    sample = load(tmp_path, record([FIRST, SECOND, THIRD], conversations=turns), file="lvis_positive_negative")
    (kept,) = sample.more["records"]
    assert kept["conversations"] == turns and kept["file"] == "osprey_lvis_positive_negative.json"
    for number, mask in enumerate((FIRST, SECOND, THIRD)):
        place = [one.id for one in sample.objects].index(kept["regions"][number])
        assert np.array_equal(sample.frames[0].masks[place], mask)


def test_all_records_of_a_picture_in_all_files_are_one_sample(tmp_path):
    root = write(tmp_path / "raw", described(), described([THIRD]), described())
    named = dict(file_name=f"COCO_train2014_{NAME}")  # the same picture under its name of 2014
    write(root, record([SECOND, THIRD], conversations=talk("<region2>?", "A"), **named), file="conversation")
    found = Found("osprey", root, tmp_path)
    sample = found.load()
    assert found.paths == [PLACE]
    assert [(one["file"], one["regions"]) for one in sample.more["records"]] == [
        ("osprey_conversation.json", ["0", "1"]),
        ("osprey_detail_description.json", ["2", "0"]),
        ("osprey_detail_description.json", ["1"]),
        ("osprey_detail_description.json", ["2", "0"]),
    ]
    assert [one.texts for one in sample.objects] == [("Thing 2.",), ("Thing 1.",), ("Thing 1.",)]
    assert found.counts["regions"] == 7 and found.counts["records of osprey_conversation.json"] == 1


@pytest.mark.parametrize("name", [NAME, f"COCO_val2014_{NAME}", f"COCO_train2014_{NAME}", f"train2017/{NAME}"])
@pytest.mark.parametrize("folder", ["coco/train2014", "coco/val2014", "coco/train2017", "coco/val2017", "images"])
def test_pictures_with_and_without_a_prefix(tmp_path, name, folder):
    for stored in (NAME, f"COCO_train2014_{NAME}"):
        root = write(tmp_path / stored, described(file_name=name), place=f"{folder}/{stored}")
        assert Found("osprey", root, tmp_path).paths == [f"{folder}/{stored}"]


def test_folders_are_probed_in_their_order(tmp_path):
    for folder in ("coco/val2017", "coco/train2017", "coco/train2014"):
        write(tmp_path / "raw", described(), place=f"{folder}/{NAME}")
    assert Found("osprey", tmp_path / "raw", tmp_path).paths == [f"coco/train2014/{NAME}"]


def test_part_pictures(tmp_path):
    place = "pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000008.jpg"
    sample = load(tmp_path, described(file_name="2008_000008.jpg"), file="part_level", place=place)
    assert sample.path == place


def test_records_without_a_picture_and_of_another_shape_are_counted(tmp_path):
    root = write(tmp_path / "raw", described(), described(file_name="000000000010.jpg"), {"file_name": 5}, [1])
    found = Found("osprey", root, tmp_path)
    assert found.paths == [PLACE, "coco/train2017/000000000010.jpg"]
    with pytest.raises(BadInput, match="no such file"):
        found.load(found.paths[1])
    assert found.counts["records without a picture"] == 1 and found.counts["records of another shape"] == 2


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg"])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    put(tmp_path / "secret.jpg", jpeg())
    found = Found("osprey", write(tmp_path / "raw", described(file_name=name)), tmp_path)
    with pytest.raises(BadInput, match=OUTSIDE):
        found.load()


@pytest.mark.parametrize(
    "bad, why",
    [
        (dict(description=["<region1>: one"]), "as many descriptions as regions are wanted"),
        (dict(description=["<region1>: a", "<region1>: b"]), "descriptions of other regions than are there"),
        (dict(description=["<region1>: a", 5]), "descriptions are not texts"),
        (dict(conversations=talk("<region1>?", "a", "b")), "a conversation is not human and gpt in turn"),
        (dict(conversations=talk("<region1>?", "a")[::-1]), "a conversation is not human and gpt in turn"),
        (dict(conversations=talk("<region3>?", "a")), "a conversation names a region that is not there"),
        (dict(conversations=talk("<region0>?", "a")), "a conversation names a region that is not there"),
        (dict(conversations=talk("<region1>?", None)), "a conversation is not a list of turns"),
        (dict(conversations=[]), "no text"),
        (dict(), "no text"),
        (dict(annotation=None, description=["a"]), "no regions"),
        (dict(annotation=[], description=["a"]), "no regions"),
    ],
)
def test_a_record_that_cannot_be_used_is_left_out_and_counted(tmp_path, bad, why):
    broken = {**record(), **bad}
    assert why in reason(tmp_path, broken)
    sample = load(tmp_path, broken, described([THIRD]))
    assert sample.notes == {RECORDS + why: 1} and len(sample.more["records"]) == 1
    assert np.array_equal(sample.frames[0].masks, [THIRD])


@pytest.mark.parametrize(
    "bad, why",
    [
        (np.zeros((HEIGHT, WIDTH), bool), "empty mask"),
        ([], "no mask"),
        ([[1, 2, 3, 4]], "empty mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "broken run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "not run lengths"}, "broken run lengths"),
        ({"size": [WIDTH, HEIGHT], "counts": rle(box(5, 5, 9, 9, (WIDTH, HEIGHT)))["counts"]}, "mask and picture"),
        ({"size": [1 << 15, 1 << 15], "counts": [1 << 30]}, "too large a mask"),
        (None, "no mask"),
    ],
)
def test_a_region_that_cannot_be_used_is_left_out_and_the_numbers_stay(tmp_path, bad, why):
    assert why in reason(tmp_path, described([bad]))
    sample = load(tmp_path, described([FIRST, bad, THIRD]))
    ((note, count),) = sample.notes.items()
    assert note.startswith(LEFT_OUT + why) and count == 1
    assert [one.id for one in sample.objects] == ["0", "2"]
    assert sample.more["records"][0]["regions"] == ["0", "1", "2"]
    assert [one.texts for one in sample.objects] == [("Thing 1.",), ("Thing 3.",)]


def test_run_lengths_of_another_size_and_the_same_shape_stay_at_their_size(tmp_path):
    large = box(10, 10, 100, 100, (2 * HEIGHT, 2 * WIDTH))
    sample = load(tmp_path, described([large, FIRST]))
    assert [mask.shape for mask in sample.frames[0].masks] == [(2 * HEIGHT, 2 * WIDTH), (HEIGHT, WIDTH)]
    assert sample.notes == {SCALED: 1}


def test_exif_orientation_follows_the_size_that_the_record_states(tmp_path):
    turned = jpeg(orientation=6)
    with Image.open(put(tmp_path / "turned.jpg", turned)) as image:
        stored = np.asarray(image.convert("RGB"))
    sample = load(tmp_path, described(), picture=turned)
    assert np.array_equal(sample.frames[0].picture, stored)
    upright = described([box(5, 5, 60, 45, (WIDTH, HEIGHT))], height=WIDTH, width=HEIGHT)
    assert load(tmp_path, upright, picture=turned).frames[0].picture.size == (HEIGHT, WIDTH)


def test_exchanged_height_and_width_are_refused(tmp_path):
    assert "mask and picture differ in shape" in reason(tmp_path, described([[SQUARE]], height=WIDTH, width=HEIGHT))


@pytest.mark.parametrize("cut", [10, 500, -40])
def test_truncated_pictures(tmp_path, cut):
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        load(tmp_path, described(), picture=jpeg()[:cut])


@pytest.mark.parametrize("damage", [b'[{"file_name": "a', b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_annotations_stop_the_run(tmp_path, damage):
    root = write(tmp_path / "raw", described())
    put(root / "Osprey-724K/osprey_short_form.json", damage)
    with pytest.raises(UserError, match=r"osprey_short_form.json: (not whole JSON|a pointer)"):
        Found("osprey", root, tmp_path)


def test_a_folder_without_annotations(tmp_path):
    with pytest.raises(UserError, match="no annotations"):
        Found("osprey", tmp_path, tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    root = tmp_path / "raw"
    names = [f"{n:012d}.jpg" for n in range(3)]
    for name, photo in zip(names, ("chelsea", "astronaut", "coffee"), strict=True):
        put(root / "coco/train2017" / name, jpeg(photo))
    put(root / "coco/train2017" / names[2], jpeg()[:700])
    put(root / "Osprey-724K/osprey_detail_description.json", [described(file_name=name) for name in names])
    turns = talk("What is <region1>?", "<region1> is a \u201cthing\u201d.")
    put(root / "Osprey-724K/osprey_conversation.json", [record([THIRD], conversations=turns, file_name=names[0])])
    summary, samples = through("osprey", root, tmp_path, max_bad=0.5)
    assert summary.manifest.left_out == {"cannot be read as a picture": 1}
    assert [line.path for line in read_ledger(Path(summary.place))] == [f"coco/train2017/{names[2]}"]
    meta = samples[f"coco/train2017/{names[0]}"]
    assert meta["records"][0]["conversations"] == turns
    assert [one["texts"] for one in meta["objects"]] == [[], ["Thing 1."], ["Thing 2."]]
    assert summary.manifest.options["found"]["regions"] == 7
