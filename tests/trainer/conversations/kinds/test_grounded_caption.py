"""Captions whose phrases have masks."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conversations.samples import check, make, objects, sample, written
from trainer.conversations.conversation import Target
from trainer.conversations.wording import GROUNDED_CAPTION_QUESTIONS

TEXT = "A Man rides a horse."


def caption(*phrases: tuple, text: str = TEXT, file: str = "GranDf_HA_GCG_train.json", **more) -> dict:
    """Return a caption with phrases of (words or span, ids of objects)."""
    found = []
    for place, ids in phrases:
        start = text.index(place) if isinstance(place, str) else place[0]
        end = start + len(place) if isinstance(place, str) else place[1]
        found.append({"start": start, "end": end, "text": text[start:end], "objects": [*ids]})
    return {"file": file, "text": text, "phrases": found, **more}


def made(*captions: dict, **options):
    of = sample({"objects": objects("man", "horse"), "captions": [*captions]}, key="k")
    rows, notes = make(of, **options)
    for row in rows:
        check(row, of)
    return rows, notes


def test_each_phrase_stands_between_marks_with_its_mask_after_it():
    (row,), notes = made(caption(("a horse", "b"), ("A Man", "a")), vary_wording=False)
    assert written(row) == [
        (
            "«<image>»\nCould you please give me a detailed description of the image? Please respond with interleaved "
            "segmentation masks for the corresponding parts of the answer.",
            "«<p>» A Man «</p>» «[SEG]» rides «<p>» a horse «</p>» «[SEG]».",
        )
    ]
    assert row.targets == (Target((0,), "A Man"), Target((1,), "a horse"))
    assert row.kind == "grounded_caption" and notes == {"phrases of grounded captions": 2}


def test_a_phrase_of_several_objects_is_their_union_and_a_file_in_lower_case_stays_so():
    (row,), _ = made(caption((TEXT[:19], "ba"), file="RefCOCOg_GCG_train.json"))
    assert written(row)[0][1] == "«<p>» a man rides a horse «</p>» «[SEG]»."
    assert row.targets == (Target((1, 0), "a man rides a horse"),)


@pytest.mark.parametrize(
    ("phrase", "note"),
    [
        ({"start": None, "end": None, "objects": ["b"]}, "phrases of captions without a place in them"),
        ({"start": 14, "end": 21, "objects": ["b"]}, "phrases that do not stand at their place in the caption"),
        ({"start": -6, "end": 19, "objects": ["b"]}, "phrases that do not stand at their place in the caption"),
        ({"start": 14, "end": 14, "objects": ["b"]}, "phrases that do not stand at their place in the caption"),
        (
            {"start": 12, "end": 19, "text": "a donkey", "objects": ["b"]},
            "phrases that do not stand at their place in the caption",
        ),
        ({"start": 12, "end": 19, "objects": ["gone"]}, "phrases of captions whose objects were left out"),
        ({"start": 12, "end": 19, "objects": ["b", "gone"]}, "phrases of captions whose objects were left out"),
        ({"start": 12, "end": 19, "objects": []}, "phrases of captions whose objects were left out"),
        ({"start": 2, "end": 5, "objects": ["b"]}, "phrases of captions that overlap another"),
        ({"start": 0, "end": 3, "objects": ["b"]}, "phrases of captions that overlap another"),
        ({"start": 4, "end": 11, "objects": ["b"]}, "phrases of captions that overlap another"),
    ],
)
def test_other_phrases_stay_words_and_are_counted(phrase, note):
    one = caption(("A Man", "a"))
    one["phrases"].insert(0, phrase)
    (row,), notes = made(one)
    assert written(row)[0][1] == "«<p>» A Man «</p>» «[SEG]» rides a horse."
    assert notes == {"phrases of grounded captions": 1, note: 1}


def test_a_caption_without_a_mask_is_left_out_and_counted():
    rows, notes = made(caption((TEXT, ["gone"])))
    assert rows == [] and notes == {
        "phrases of captions whose objects were left out": 1,
        "captions without a phrase that has a mask": 1,
        "samples without a conversation of kind grounded_caption": 1,
    }


def test_a_short_caption_of_flickr30k_is_left_out():
    short = caption(("A man", "a"), text="A man")
    assert len(made(short)[0]) == 1
    rows, notes = made({**short, "file": "flickr_mergedGT_GCG_train.json"})
    assert rows == [] and notes["captions of fewer than 3 words"] == 1


@pytest.mark.parametrize("lead", [0, 1])
def test_of_several_places_of_a_region_of_flickr30k_only_the_first_gets_a_mask(lead):
    file = "flickr_mergedGT_GCG_train.json"
    text = "A man sees a man."
    stated = [[lead, 5 + lead], [11 + lead, 16 + lead]]
    says = [
        {"image_id": 7, "tokens_positive": stated},
        {"image_id": 8, "tokens_positive": [[11, 16]]},  # of another caption
    ]
    man = {**objects("man")[0], "annotations": [{"file": "other.json", "says": {"x": 1}}, {"file": file, "says": says}]}
    original = '"' * lead + text + '"' * lead
    one = caption(((0, 5), "a"), ((11, 16), "a"), text=text, file=file, record={"id": 7, "caption": original})
    (row,), notes = make(sample({"objects": [man], "captions": [one]}))
    assert written(row)[0][1] == "«<p>» A man «</p>» «[SEG]» sees a man."
    assert notes["second places of phrases of captions"] == 1


def test_captions_come_in_turn_and_the_questions_are_drawn():
    captions = [caption((word, "a")) for word in ("A Man", "rides", "a horse")]
    epochs = [made(*captions, epoch=epoch)[0][0] for epoch in range(60)]
    for start in range(0, 60, 3):
        assert {row.targets[0].phrase for row in epochs[start : start + 3]} == {"A Man", "rides", "a horse"}
    asked = {written(row)[0][0].removeprefix("«<image>»\n") for row in epochs}
    assert asked == {*GROUNDED_CAPTION_QUESTIONS} and len(asked) == 6


@settings(max_examples=100)
@given(st.text("aé [SEG]<p>", max_size=30), st.data())
def test_without_its_marks_the_answer_is_the_caption(text, data):
    """For any caption and phrases: the letters stay, also those that spell marks, and no two phrases overlap."""
    text += "a"
    place = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(place, place), max_size=6))
    one = caption(*[(span, "a") for span in spans], text=text)
    of = sample({"objects": objects("x"), "captions": [one]})
    rows, notes = make(of, kind="grounded_caption")
    kept = sum(len(row.targets) for row in rows)
    usable = sum(start < end for start, end in spans)
    assert kept + notes["phrases of captions that overlap another"] == usable
    for row in rows:
        check(row, of)
        answer = written(row)[0][1]
        plain = answer.replace("«<p>» ", "").replace(" «</p>» «[SEG]»", "")
        assert plain.strip() == text.strip() and answer == answer.strip()


def test_a_phrase_of_an_object_that_is_not_chosen_stays_as_words():
    """A caption of which no phrase is left is not asked for."""
    captions = [caption(("A Man", "a"), ("a horse", "b")), caption(("A Man", "b"))]
    of = replace(sample({"objects": objects("man", "horse"), "captions": captions}, key="k"), chosen=[0])
    for visit in range(3):
        (row,), notes = make(of, visit=visit)
        assert written(row)[0][1] == "«<p>» A Man «</p>» «[SEG]» rides a horse."
        assert row.targets == (Target((0,), "A Man"),)
        assert notes["phrases of captions of objects that the condition leaves out"] == 2
        assert notes["captions without a phrase that has a mask"] == 1
