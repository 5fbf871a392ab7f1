"""Phrases of a sample, and those of other samples that do not fit it."""

from dataclasses import replace

import pytest

from tests.trainer.conversations.samples import make, objects, sample, written
from trainer.conversations.phrases import phrases_of
from trainer.data.object_texts import ObjectTexts

EXPRESSIONS = [
    {"text": "Both dogs.", "objects": ["a", "b"]},
    {"text": "the dog on the left", "objects": ["a"]},
    {"text": "a purple cow", "objects": []},
    {"text": "...", "objects": ["a"]},
    {"objects": ["a"]},
]
DOGS = {"objects": objects("the dog on the left", "dog 2"), "expressions": EXPRESSIONS}


def test_the_phrases_for_other_samples_are_those_that_refer_to_objects():
    assert phrases_of(DOGS) == ["Both dogs.", "the dog on the left"]
    assert phrases_of({"objects": objects(["x", "?"], [], "y")}) == ["x", "y"]


@pytest.mark.parametrize(
    "phrase", ["dog", "The Dog, on the left", "dog 2", "a big dog 2 in red", "dogs", "cows", "purple", "...", "the"]
)
def test_a_phrase_that_fits_the_sample_by_its_words_is_no_negative(phrase):
    meta = {**DOGS, "captions": [{"text": "A cow. And a dog."}]}
    (row,), notes = make(sample(meta), phrases=2, negatives=1.0, other=lambda draws: phrase)
    assert "phrases of other samples" not in notes and all(phrase != target.phrase for target in row.targets)


@pytest.mark.parametrize("phrase", ["hotdog", "dog 22", "a left turn"])
def test_a_phrase_whose_words_are_not_those_of_the_sample_is_a_negative(phrase):
    _, notes = make(sample(DOGS), phrases=2, negatives=1.0, other=lambda draws: phrase)
    assert notes["phrases of other samples"] == notes["phrases of no object"] == 2


def test_objects_that_are_not_chosen_are_seen_but_not_asked_for():
    """Their texts are no negatives, since the picture shows them, and no phrases for other samples."""
    of = replace(sample({**DOGS, "objects": objects("the dog on the left", "a bear")}), chosen=[0])
    for epoch in range(4):
        (row,), notes = make(of, epoch, phrases=3, no_target="left_out")
        assert {target.phrase for target in row.targets} == {"the dog on the left"}
        assert notes["expressions of objects that the condition leaves out"] == 1
    _, notes = make(of, phrases=2, negatives=1.0, other=lambda draws: "bear")
    assert "phrases of other samples" not in notes
    assert phrases_of(DOGS, [0]) == ["the dog on the left"]
    assert phrases_of({"objects": objects(["x", "?"], [], "y")}, [2]) == ["y"]


def test_joined_texts_are_asked_for_as_names():
    """In place of the source's texts there are no expressions; what a joined text says is no negative."""
    meta = {**DOGS, "objects": [{**item, "is_sentence": True} for item in objects("The dog.", "dog 2")]}
    texts = ObjectTexts([{0: ["A Grey wolf."]}])
    (row,), _ = make(replace(sample(meta), object_texts=texts), phrases=9, vary_wording=False)
    assert written(row) == [("«<image>»\nCan you segment the a grey wolf in this image?", "It is «[SEG]».")]
    assert phrases_of(meta, None, texts) == ["A Grey wolf."]
    both = replace(sample(meta), object_texts=ObjectTexts([None, {0: ["A Grey wolf."]}]))
    (row,), _ = make(both, phrases=9, no_target="left_out")
    assert {target.phrase for target in row.targets} == {"Both dogs.", "the dog on the left", "A Grey wolf."}
    _, notes = make(both, phrases=2, negatives=1.0, other=lambda draws: "grey wolf")
    assert "phrases of other samples" not in notes
