"""Regions are shown, and conversations or descriptions speak of them."""

from dataclasses import replace

import pytest

from tests.trainer.conversations.samples import check, make, objects, sample, written
from trainer.conversations.wording import REGION_QUESTIONS

TWO = "«<image>»\nThere are 2 part regions in the picture: region1«<vp>», region2«<vp>».\n"


def record(*texts: str, regions: str = "ba", file: str = "osprey_conversation.json") -> dict:
    """Return a record of questions and answers in turn."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"id": 1, "file": file, "regions": [*regions], "conversations": turns}


def described(*texts: str, regions: str = "ba", key: str = "description", **more) -> dict:
    return {"file": "osprey_detail_description.json", "regions": [*regions], key: [*texts], **more}


def made(*records: dict, epoch: int = 0, cells=None, **options):
    frames = 1 if cells is None else len(cells)
    of = sample({"objects": objects("x", "y"), "records": [*records]}, frames, "osprey", cells=cells)
    rows, notes = make(of, epoch, kind="regions", **options)
    for row in rows:
        check(row, of)
    return rows, notes


def test_a_conversation_names_its_regions_and_loses_its_angle_brackets():
    (row,), notes = made(record(" Is <region1> on <region2>? ", " Yes, <region1> is. ", " <b>Why</b>? ", "So."))
    assert written(row) == [(TWO + " Is region1 on region2?", "Yes, region1 is."), (" bWhy/b? ", "So.")]
    assert row.regions == (1, 0) and row.kind == "regions" and notes == {"turns about regions": 2}


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        ("osprey_short_form.json", " Answer the question using a single word or phrase."),
        ("osprey_part_level.json", ""),
        ("osprey_lvis_positive_negative.json", ""),
    ],
)
def test_the_questions_of_short_answers_say_so(file, limit):
    (row,), _ = made(record("What is <region1>?", "a cat", "And <region2>?", "a dog", file=file))
    assert [question.rsplit("\n")[-1] for question, _ in written(row)] == [
        "What is region1?" + limit,
        "And region2?" + limit,
    ]


@pytest.mark.parametrize("key", ["description", "descriptions"])
def test_each_description_is_asked_for(key):
    (row,), _ = made(described("<region1>: a <b> cat ", "<region2>: a dog", key=key), vary_wording=False)
    question = "Can you provide me with a detailed description of the region in the picture marked by {}?"
    assert written(row) == [
        (TWO + question.format("region1"), "region1: a b cat"),
        (question.format("region2"), "region2: a dog"),
    ]


def test_a_description_that_names_its_region_is_asked_with_it():
    (row,), _ = made(described("<region2>: a dog", "<region1>: a cat"), vary_wording=False)
    assert ["region2" in written(row)[0][0].rsplit("\n")[-1], "region1" in written(row)[1][0]] == [True, True]
    (row,), _ = made(described("a dog", "<region1>: a cat"), vary_wording=False)
    assert ["region1" in written(row)[0][0].rsplit("\n")[-1], "region2" in written(row)[1][0]] == [True, True]


def test_all_18_questions_are_drawn():
    asked = set()
    for epoch in range(200):
        (row,), _ = made(described("x", regions="a"), epoch=epoch)
        asked.add(written(row)[0][0].rsplit("\n")[-1].replace("region1", "{region}"))
    assert asked == {*REGION_QUESTIONS} and len(asked) == 18


def test_one_row_for_each_description_shows_all_regions():
    rows, notes = made(described("x", "y"), one_phrase_per_row=True, vary_wording=False)
    assert [row.regions for row in rows] == [(1, 0), (1, 0)] and notes["turns about regions"] == 2
    assert all(written(row)[0][0].startswith(TWO) for row in rows)
    assert len(made(record("a", "b", "c", "d"), one_phrase_per_row=True)[0]) == 1  # a turn needs those before it


def test_records_come_in_turn():
    records = [record("?", str(number)) for number in range(5)]
    seen = [written(made(*records, epoch=epoch)[0][0])[0][1] for epoch in range(10)]
    assert {*seen[:5]} == {*seen[5:]} == {*"01234"}


@pytest.mark.parametrize(
    ("broken", "note"),
    [
        (record("Is <region1> red?", "Yes.", regions=["a", "gone"]), "records with a region that was left out"),
        (record("Is <region3> red?", "Yes."), "records with a region that was left out"),
        (record("Is <region1> red?"), "records of another shape"),
        (record(), "records of another shape"),
        (record("?", "x", regions=""), "records of another shape"),
        (described("x"), "records of another shape"),
        ({"file": "x"}, "records of another shape"),
        ("x", "records of another shape"),
    ],
)
def test_a_record_that_cannot_be_used_is_left_out_and_counted(broken, note):
    rows, notes = made(broken)
    assert rows == [] and notes == {note: 1, "samples without a conversation of kind regions": 1}
    (row,), notes = made(broken, record("?", "good"))
    assert written(row)[0][1] == "good" and notes == {note: 1, "turns about regions": 1}


def test_a_frame_shows_cells_of_all_regions():
    rows, notes = made(record("?", "x"), cells=[[0, 4]])
    assert rows == [] and notes["records with a region without cells"] == 1
    for epoch in range(9):
        (row,), _ = made(record("?", "x"), cells=[[0, 4], [3, 0], [2, 1]], epoch=epoch)
        assert row.frames == (2,)


def test_equal_outlines_are_one_object_that_stands_twice():
    (row,), _ = made(record("?", "x", regions="aa"))
    assert row.regions == (0, 0) and written(row)[0][0] == TWO + "?"


def test_a_record_about_a_region_that_is_not_chosen_is_left_out():
    records = [record("What is <region1>?", "x", regions="a"), record("Is <region1> by <region2>?", "Yes.")]
    of = replace(sample({"objects": objects("x", "y"), "records": records}), chosen=[0])
    for visit in range(3):
        (row,), notes = make(of, visit=visit, kind="regions")
        assert row.regions == (0,) and notes["records with a region that the condition leaves out"] == 1
