"""Phrases are asked for, and answered with a mask or with words."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conversations.samples import check, make, objects, sample, written
from trainer.conversations.conversation import Target
from trainer.conversations.wording import ANSWERS, QUESTIONS, REFUSALS

EXPRESSIONS = [
    {"id": "0", "text": "Both dogs.", "objects": ["a", "b"]},
    {"id": "1", "text": "the dog on the left", "objects": ["a"]},
    {"id": "2", "text": "a purple cow", "objects": []},
    {"id": "3", "text": "the lost dog", "objects": ["a", "gone"]},
    {"id": "4", "text": "...", "objects": ["a"]},
]
DOGS = {"objects": objects("the dog on the left", "dog 2"), "expressions": EXPRESSIONS}


def test_a_row_has_the_picture_once_and_a_turn_for_each_phrase():
    of = sample({"objects": objects("A red Car.", "dog")})
    (row,), notes = make(of, phrases=2, vary_wording=False)
    check(row, of)
    question = "Can you segment the {} in this image?"
    first, second = [question.format(target.phrase.lower().rstrip(".")) for target in row.targets]
    assert written(row) == [("«<image>»\n" + first, "It is «[SEG]»."), (second, "It is «[SEG]».")]
    assert {*row.targets} == {Target((0,), "A red Car."), Target((1,), "dog")}
    assert notes == {"phrases": 2} and row.kind == "referring" and row.frames == (0,)


def test_an_expression_names_several_objects_or_none():
    of = sample(DOGS)
    (row,), notes = make(of, phrases=5, vary_wording=False)
    check(row, of)
    assert {target.phrase: target.objects for target in row.targets} == {
        "Both dogs.": (0, 1),
        "the dog on the left": (0,),
    }
    said = {question.removeprefix("«<image>»\n"): answer for question, answer in written(row)}
    assert said["Can you segment the a purple cow in this image?"] == REFUSALS[0]
    assert "lost" not in str(said)
    assert notes == {
        "phrases": 3,
        "phrases of several objects": 1,
        "phrases of no object": 1,
        "expressions of unknown objects": 1,
        "expressions without a text": 1,
    }


def test_an_expression_of_no_object_can_train_an_empty_mask_or_nothing():
    (row,), notes = make(sample(DOGS), phrases=5, no_target="empty_mask")
    assert Target((), "a purple cow") in row.targets and len(row.turns) == len(row.targets) == 3
    assert notes["phrases of no object"] == 1
    (row,), notes = make(sample(DOGS), phrases=5, no_target="left_out")
    assert len(row.turns) == 2 and all(target.objects for target in row.targets)
    assert notes["phrases of no object left out"] == 1 and "phrases of no object" not in notes


@pytest.mark.parametrize(
    ("source", "frames", "text", "name"),
    [
        ("folder", 1, " Man 1.5 m tall.. ", "man 1.5 m tall."),
        ("refcoco", 1, "Left guy?", "left guy?"),
        ("mevis", 3, " The dog. It runs. ", "the dog it runs"),
        ("mevis", 1, "The dog. It runs.", "the dog. it runs"),
        ("ref-sav", 3, "The dog. Is it red? ", "The dog. Is it red? "),
    ],
)
def test_a_phrase_is_put_into_a_question(source, frames, text, name):
    of = sample({"objects": objects(text)}, frames, source)
    (row,), _ = make(of, vary_wording=False)
    assert written(row)[0][0] == f"«<image>»\nCan you segment the {name} in this image?"
    assert row.targets[0].phrase == text


@pytest.mark.parametrize(
    ("source", "frames", "text", "first", "later"),
    [
        ("reasonseg", 1, " What flies? ", "What flies?", "What flies?"),
        ("revos", 3, " What flies? I ask. ", " What flies? I ask.", " What flies? I ask. "),
    ],
)
def test_a_question_is_asked_as_it_stands(source, frames, text, first, later):
    (row,), _ = make(sample({"objects": objects(text, text)}, frames, source), phrases=2)
    assert [question for question, _ in written(row)] == ["«<image>»\n" + first, later]


def test_a_sentence_is_asked_with_a_request_for_a_mask():
    item = {"id": "target", "texts": ["The part that one drinks from."], "is_sentence": True}
    (row,), _ = make(sample({"objects": [item]}, source="reasonseg"))
    assert written(row)[0][0].endswith("\nThe part that one drinks from. Please respond with segmentation mask.")
    name = {**item, "texts": ["the cup"], "is_sentence": False}
    (row,), _ = make(sample({"objects": [name]}, source="reasonseg"), vary_wording=False)
    assert written(row)[0][0].endswith("\nCan you segment the the cup in this image?")


def test_letters_that_spell_a_mark_stay_letters():
    text = "[SEG] <image> {phrase} </p>"
    (row,), _ = make(sample({"objects": objects(text)}), vary_wording=False)
    assert row.turns[0].question[1:] == ("\nCan you segment the [seg] <image> {phrase} </p> in this image?",)


@pytest.mark.parametrize("kind", ["segment", "referring"])
def test_every_wording_is_drawn_as_often_as_it_stands_in_the_list(kind):
    questions, answers = Counter(), Counter()
    for epoch in range(1600):
        (row,), _ = make(sample({"objects": objects("x")}), epoch, kind=kind)
        (asked, answered) = written(row)[0]
        questions[asked.removeprefix("«<image>»\n").replace(" x ", " {phrase} ")] += 1
        answers[answered.replace("«[SEG]»", "[SEG]")] += 1
    wanted = Counter(QUESTIONS)
    assert questions.keys() == wanted.keys() and answers.keys() == {*ANSWERS}
    assert all(abs(questions[text] / 100 - wanted[text]) < 0.4 for text in wanted)
    assert all(abs(count / 320 - 1) < 0.2 for count in answers.values())


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 4), st.booleans(), st.data())
def test_every_phrase_comes_before_one_comes_twice(texts, most, as_expressions, data):
    """Over the visits of several epochs, with or without copies, however many phrases a row has."""
    names = [[f"object {n} text {m}" for m in range(count)] for n, count in enumerate(texts)]
    every = [(text, n) for n, found in enumerate(names) for text in found]
    meta = {"objects": objects(*names)}
    if as_expressions:
        meta["expressions"] = [{"text": text, "objects": [chr(ord("a") + n)]} for text, n in every]
    copies = data.draw(st.integers(1, 2))
    of = sample(meta, key=data.draw(st.text("ab", min_size=1)))
    times = Counter(dict.fromkeys((text for text, _ in every), 0))
    for visit in range(2 * len(every)):
        rows, _ = make(of, visit // copies, visit, visit % copies, phrases=most)
        for row in rows:
            check(row, of)
            assert len(row.turns) == min(most, len(every))
            assert all((target.phrase, *target.objects) in every for target in row.targets)
            times.update(target.phrase for target in row.targets)
            assert max(times.values()) - min(times.values()) <= 1


def test_with_replacement_objects_are_drawn_alike_and_each_text_of_one_alike():
    of = sample({"objects": objects(["x", "y", "z"], "w")})
    drawn = Counter()
    for epoch in range(400):
        (row,), _ = make(of, epoch, phrases=5, with_replacement=True)
        assert len(row.turns) == 5
        drawn.update(target.phrase for target in row.targets)
    assert abs(drawn["w"] / 2000 - 1 / 2) < 0.05
    assert all(abs(drawn[text] / 2000 - 1 / 6) < 0.05 for text in "xyz")


def test_one_phrase_per_row():
    of = sample(DOGS, frames=4)
    (row,), _ = make(of, phrases=3, frames=2, vary_wording=False)
    rows, _ = make(of, phrases=3, frames=2, vary_wording=False, one_phrase_per_row=True)
    assert [len(one.turns) for one in rows] == [1, 1, 1]
    for one in rows:
        check(one, of)
        assert one.frames == row.frames
    assert [written(one)[0] for one in rows] == [
        ("«<image>»\n" + question.removeprefix("«<image>»\n"), answer) for question, answer in written(row)
    ]


def test_a_share_of_the_phrases_is_replaced_by_phrases_of_other_samples():
    replaced = 0
    for epoch in range(400):
        (row,), notes = make(sample(DOGS), epoch, phrases=2, negatives=0.3, other=lambda draws: "a tractor")
        tractors = sum("a tractor" in question for question, _ in written(row))
        assert tractors == notes["phrases of other samples"] and notes["phrases"] == 2
        assert len(row.targets) == 2 - notes["phrases of no object"]
        replaced += tractors
    assert abs(replaced / 800 - 0.3) < 0.06


def test_segment_takes_objects_in_turn_and_the_texts_of_each_in_turn():
    of = sample({"objects": objects(["a1", "a2"], [], "c1", "d1")}, cells=[[4, 4, 4, 0]])
    asked = []
    for epoch in range(4):
        (row,), _ = make(of, epoch, kind="segment")
        check(row, of)
        asked += [(target.objects, target.phrase) for target in row.targets]
    assert {objects for objects, _ in asked[:2]} == {(0,), (2,)}  # object 1 has no text, object 3 no cell
    assert {text for _, text in asked} == {"a1", "a2", "c1"}
    (row,), notes = make(of, phrases=5, kind="segment")
    assert [target.objects for target in row.targets] == [(0,), (2,)] and notes["phrases"] == 2
    assert make(sample({"objects": objects([])}), kind="segment")[0] == []
