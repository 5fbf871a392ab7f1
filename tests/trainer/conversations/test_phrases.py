"""Phrases of a sample, and those of other samples that do not fit it."""

import pytest

from tests.trainer.conversations.samples import make, objects, sample
from trainer.conversations.phrases import phrases_of

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
