"""Conversations about pictures: LLaVA's 665k, its folders, and the faults of such files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.conversations import SAME_ID, SKIPPED, TAKEN_OUT, UNANSWERED
from pipeline.sources.llava import IN_FRONT, OTHER_SUFFIX
from shards.errors import BadInput, UserError
from tests.pipeline.built import Found, jpeg, put, through

COCO = "coco/train2017/000000033471.jpg"
OCR = "ocr_vqa/images/140031996X.jpg"
FILE = "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"


def talk(*values, first="human"):
    """Return messages of the human and the model in turn."""
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[n % 2], "value": value} for n, value in enumerate(values)]


def record(*values, image=COCO, **more):
    return {"id": "000000033471", "image": image, "conversations": talk(*values), **more}


RECORDS = [
    record("<image>\nWhat are the colors of the bus?", "White and red.", "What is behind it? ", " A building.\n"),
    record("Who wrote this book?\n<image>", "Wendy C. Myers", image=OCR, id="140031996X"),
    {"id": "wgByO4Y_0", "model": "", "conversations": talk("Write a <b>line</b>.", "Once.", "More <image> ", "Twice.")},
]


def write_llava(root: Path, *records, file: str = FILE, pictures=(COCO, OCR)) -> Path:
    put(root / file, [*(records or RECORDS)])
    for name in pictures:
        put(root / "llava_images" / name, jpeg())
    return root


def load(tmp_path, *records, **more):
    return Found("llava", write_llava(tmp_path / "raw", *records, **more), tmp_path).load()


def spelled(turns) -> list[tuple[str, str]]:
    """Return question and answer of each turn, the pictures' place written as {}."""
    places = [turn.get("picture") for turn in turns]
    assert all(place is None for place in places[1:])
    cut = [
        turn["question"] if place is None else turn["question"][:place] + "{}" + turn["question"][place:]
        for turn, place in zip(turns, places, strict=True)
    ]
    return list(zip(cut, [turn["answer"] for turn in turns], strict=True))


def test_the_665k_of_llava_as_it_is_unpacked(tmp_path):
    found = Found("llava", write_llava(tmp_path / "raw"), tmp_path)
    assert found.paths == [f"{FILE}#2", f"llava_images/{COCO}#0", f"llava_images/{OCR}#1"]
    text, bus, book = map(found.load, found.paths)
    assert spelled(bus.more["turns"]) == [
        ("{}\nWhat are the colors of the bus?", "White and red."),
        ("What is behind it? ", "A building."),
    ]
    assert bus.more["record"] == {"id": "000000033471", "image": COCO} and bus.more["file"] == Path(FILE).name
    assert spelled(book.more["turns"]) == [("Who wrote this book?\n{}", "Wendy C. Myers")]
    assert spelled(text.more["turns"]) == [("Write a <b>line</b>.", "Once."), ("More  ", "Twice.")]
    assert text.frames == () and text.notes == {TAKEN_OUT: 1}
    (frame,) = bus.frames
    with Image.open(found.root / "llava_images" / COCO) as image:
        assert np.array_equal(frame.picture, image) and frame.name == "000000033471.jpg" and frame.masks == ()
    assert not any(sample.objects or sample.segmentable for sample in (text, bus, book))
    assert [*found.source.files(found.paths[1], iter(found.records.parts(found.paths[1])))] == [f"llava_images/{COCO}"]
    assert [*found.source.files(found.paths[0], iter(found.records.parts(found.paths[0])))] == []
    assert found.counts == {
        **{"records": 3, "records of a picture": 2, "records without a picture": 1, "pictures that are missing": 0},
        **{SAME_ID: 0, OTHER_SUFFIX: 0},
    }


@pytest.mark.parametrize("base", ["", "llava_data/"])
@pytest.mark.parametrize("folder", ["LLaVA-Instruct-150K/", "LLaVA-Instruct-665K/", ""])
def test_where_the_file_is_found(tmp_path, base, folder):
    put(tmp_path / f"{base}{folder}llava_v1_5_mix665k.json", RECORDS[:1])
    put(tmp_path / f"{base}llava_images" / COCO, jpeg())
    put(tmp_path / "other.json", "not it")
    assert Found("llava", tmp_path, tmp_path).paths == [f"{base}llava_images/{COCO}#0"]


@pytest.mark.parametrize("named", ["mine", "mine.jsonl", "sub/mine", None])
def test_a_file_of_ones_own_and_its_pictures_beside_it(tmp_path, named):
    place = "sub/mine.jsonl" if named == "sub/mine" else "mine.jsonl"
    lines = [json.dumps(record("<image>Hi", "Ho", image="pictures/a.JPEG")), ""]
    put(tmp_path / place, "\n".join(lines).encode())
    put(tmp_path / Path(place).parent / "pictures/a.jpg", jpeg())
    found = Found("llava", tmp_path, tmp_path, split=named)
    assert spelled(found.load().more["turns"]) == [("{}Hi", "Ho")]


def test_which_of_several_files_is_asked_for(tmp_path):
    for name in ("a.json", "b.json"):
        put(tmp_path / name, RECORDS)
    with pytest.raises(UserError, match=r"several files of conversations; met a.json, b.json; .*--split NAME"):
        Found("llava", tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no conversations; met c; "):
        Found("llava", tmp_path, tmp_path, split="c")
    with pytest.raises(UserError, match=r"no conversations; met ../a; "):
        Found("llava", tmp_path, tmp_path, split="../a")


@pytest.mark.parametrize("stored", ["140031996X.gif", "140031996X.png"])
def test_pictures_of_ocr_vqa_under_the_suffix_that_they_were_downloaded_with(tmp_path, stored):
    root = write_llava(tmp_path / "raw", RECORDS[1], pictures=())
    place = root / "llava_images/ocr_vqa/images" / stored
    place.parent.mkdir(parents=True)
    colours = np.zeros((20, 30, 3), np.uint8) + np.uint8([200, 30, 40])
    Image.fromarray(colours).quantize(8).save(place)
    found = Found("llava", root, tmp_path)
    assert found.paths == [f"llava_images/ocr_vqa/images/{stored}#0"] and found.counts[OTHER_SUFFIX] == 1
    picture = found.load().frames[0].picture
    assert picture.mode == "RGB" and np.array_equal(picture, colours)


def test_a_missing_picture_is_named_and_is_bad(tmp_path):
    found = Found("llava", write_llava(tmp_path / "raw", pictures=(COCO,)), tmp_path)
    assert found.counts["pictures that are missing"] == 1 and f"{OCR}#1" in found.paths
    with pytest.raises(BadInput, match=rf"no such file; met no '{OCR}' in llava_images"):
        found.load(f"{OCR}#1")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a\0b.jpg", "x" * 300])
def test_names_that_no_picture_can_have(tmp_path, name):
    put(tmp_path / "secret.jpg", jpeg())
    found = Found("llava", write_llava(tmp_path / "raw", record("<image>?", "a", image=name)), tmp_path)
    assert found.paths == [f"{FILE}#0"]
    with pytest.raises(BadInput, match="path leaves the dataset"):
        found.load()


def test_speakers_out_of_order(tmp_path):
    """Leading answers are skipped, messages of the human in a row are joined, and a last question has no answer."""
    messages = [*talk("Hello", first="gpt"), *talk(" <image>\nOne. ")[:1], *talk("Two.", "Yes.", "And?")]
    sample = load(tmp_path, {"image": COCO, "conversations": messages})
    assert spelled(sample.more["turns"]) == [("{}\nOne.Two.", "Yes.")]
    assert sample.notes == {SKIPPED: 1, UNANSWERED: 1}


def test_other_names_of_the_speakers_and_a_list_of_one_picture(tmp_path):
    messages = [{"from": "user", "value": "See?\n"}, {"from": "assistant", "value": "Yes."}]
    sample = load(tmp_path, {"images": [COCO], "conversations": messages})
    assert spelled(sample.more["turns"]) == [("{}\nSee?\n", "Yes.")] and sample.notes[IN_FRONT] == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"conversations": []}, "no conversation"),
        ({"conversations": None}, "no conversation"),
        ({"conversations": {"from": "human"}}, "no conversation"),
        ({"conversations": ["Hi", "Ho"]}, "a message of another shape"),
        ({"conversations": talk("<image>", 5)}, "a message of another shape"),
        ({"conversations": talk("<image>?")}, "no question with an answer; met 1 questions"),
        ({"conversations": talk("Hi", first="gpt")}, "no question with an answer; met 0 questions"),
        ({"conversations": talk("<image>?", " \n")}, "an empty answer; met message 1"),
        ({"conversations": talk("<image>?", "a", "", "b")}, "an empty question"),
        ({"conversations": [*talk("<image>?", "a"), *talk("b", first="gpt")]}, "two answers without a question"),
        ({"conversations": talk("?", "a", "<image>", "b")}, "<image> after the first message; met turn 1"),
        ({"conversations": [*talk("Hm.")[:1], *talk("<image>", "b")]}, "<image> after the first message; met turn 0"),
        ({"conversations": talk("<image><image>?", "a")}, "several <image> for one picture; met 2"),
        (
            {"conversations": [{"from": "system", "value": "Be kind."}, *talk("<image>?", "a")]},
            "a speaker .*met system",
        ),
        ({"image": [COCO, OCR]}, "several pictures in a record; met 2"),
        ({"image": 5}, "no name of a picture; met 5"),
        ({"image": None, "video": "a.mp4"}, "a record of a video; met a.mp4; wanted image; use --source videoqa"),
    ],
)
def test_a_record_with_a_fault_is_one_bad_input(tmp_path, bad, why):
    with pytest.raises(BadInput, match=why):
        load(tmp_path, {**record("<image>?", "a"), **bad})


def test_records_of_another_shape_and_ids_that_come_twice(tmp_path):
    first = record("<image>?", "a")
    found = Found("llava", write_llava(tmp_path / "raw", "text", [first], None, first, first), tmp_path)
    bad = [f"{FILE}#{n}" for n in range(3)]
    assert found.paths == [*bad, f"llava_images/{COCO}#3", f"llava_images/{COCO}#4"] and found.counts[SAME_ID] == 1
    for path in bad:
        with pytest.raises(BadInput, match="not a record"):
            found.load(path)


@pytest.mark.parametrize("damage", [b'[{"image": "a', b"", b"version https://git-lfs.github.com/spec/v1\n", b"{}x"])
def test_damaged_annotations_stop_the_run(tmp_path, damage):
    put(tmp_path / FILE, damage)
    with pytest.raises(UserError, match=r"llava_v1_5_mix665k.json"):
        Found("llava", tmp_path, tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    broken = record("<image>?", "a", image="coco/train2017/9.jpg")
    root = write_llava(tmp_path / "raw", *RECORDS, broken)
    put(root / "llava_images/coco/train2017/9.jpg", jpeg()[:700])
    summary, samples = through("llava", root, tmp_path, max_bad=0.5)
    assert summary.manifest.left_out == {"cannot be read as a picture": 1} and summary.manifest.version == 3
    assert spelled(samples[f"llava_images/{OCR}#1"]["turns"]) == [("Who wrote this book?\n{}", "Wendy C. Myers")]
    meta = samples[f"{FILE}#2"]
    assert meta["objects"] == meta["frames"] == [] and meta["record"] == {"id": "wgByO4Y_0", "model": ""}
