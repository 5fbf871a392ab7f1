"""METEOR and CIDEr: equal to pycocoevalcap's own, of all texts and of samples of them."""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest

from evaluation.published import captions
from evaluation.published.captions import caption_measures, missing
from evaluation.published.measures import value_of, values_of
from shards.errors import UserError

WORDS = ["the", "a", "cat", "cats", "dog", "running", "ran", "quickly", "near", "large", "house", "red", "car", "its"]


@pytest.mark.slow
def test_measures_of_samples_are_those_of_pycocoevalcap(monkeypatch):
    if missing():
        pytest.skip(missing())
    tool = importlib.import_module("pycocoevalcap.meteor.meteor")
    official = tool.Meteor()
    monkeypatch.setattr(tool, "Meteor", lambda: official)  # it takes seconds to start
    rng = random.Random(0)
    answers = [" ".join(rng.choices(WORDS, k=rng.randint(0, 9))) for _ in range(30)]
    answers[:4] = ["", "A red car!", "one\u2028two\r\nthree: \ud800", "a red car"]
    truths = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(n % 3 + 1)] for n in range(30)]
    truths[1] = truths[3] = ["a red car"]
    answers[-1] = ""
    found = caption_measures(answers, truths)

    def words(text: str) -> str:
        return " ".join("".join(c if c.isalnum() or c in "\ud800" else " " for c in text.lower()).split())

    given = [[words(text).replace("\ud800", "?").replace("?", "")] for text in answers]
    for sample in ([*range(30)], [1, 1, 3, 5, 5, 9, 29, 0], [3]):
        counts = np.bincount(sample, minlength=30)[None].astype(float)
        texts = {n: given[i] for n, i in enumerate(sample)}
        expected, _ = official.compute_score({n: truths[i] for n, i in enumerate(sample)}, texts)
        assert values_of(found["METEOR"], counts)[0] == pytest.approx(expected, abs=1e-12)
    cider = importlib.import_module("pycocoevalcap.cider.cider").Cider()
    expected, of_items = cider.compute_score(dict(enumerate(truths)), dict(enumerate(given)))
    assert value_of(found["CIDEr"]) == pytest.approx(expected, abs=1e-12)
    twice = np.bincount([7, 7, 8], minlength=30)[None].astype(float)
    assert values_of(found["CIDEr"], twice)[0] == pytest.approx(np.mean(of_items[[7, 7, 8]]), abs=1e-12)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing() == 'pycocoevalcap is not installed: pip install "sa2va-shards[benchmark]"'


def test_a_java_that_fails_is_one_line(monkeypatch):
    class Broken:
        def tokenize(self, texts):
            return {}

    module = type("module", (), {"PTBTokenizer": Broken})
    monkeypatch.setattr(captions.importlib, "import_module", lambda name: module)
    with pytest.raises(UserError, match="pycocoevalcap failed; met the tokenizer returned another number of lines"):
        caption_measures(["a"], [["b"]])
