"""METEOR and CIDEr of texts, by pycocoevalcap where it and Java are installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.published.measures import Float, Measure, Ratio
from shards.errors import UserError

INSTALL = 'pip install "sa2va-shards[benchmark]"'
NOT_MEASURED = "METEOR and CIDEr are not measured: "
_STATISTICS = 23
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])
"""Weights of equal words, equal stems, synonyms and paraphrases."""


def missing() -> str:
    """Return what texts cannot be measured without; "" where all of it is there."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return f"pycocoevalcap is not installed: {INSTALL}"
    return "" if shutil.which("java") else "Java is not installed"


@dataclass(frozen=True)
class Meteor:
    """METEOR 1.5 for English of a set of texts: from sums over all texts, no mean over them.

    Denkowski and Lavie, "Meteor Universal" (2014), with the parameters of the tool that pycocoevalcap runs.
    """

    statistics: Float
    """(N, 23), the tool's counts of each item: words of answer and truth, function words of both; content words of
    the answer and of the truth and function words of both that each of four modules matches; chunks; matched words
    of both."""

    @property
    def items(self) -> int:
        return len(self.statistics)

    def values(self, counts: Float) -> Float:
        modules = self.statistics[:, 4:20].reshape(-1, 4, 4).sum(axis=1)
        all_matched = (modules[:, 0:2] + modules[:, 2:4] == self.statistics[:, 0:2]).all(axis=1)
        chunks = self.statistics[:, 20].copy()
        chunks[all_matched & (chunks == 1)] = 0  # the answer is the truth
        sums = counts @ self.statistics
        modules = sums[:, 4:20].reshape(-1, 4, 4)
        matches = np.einsum("m,dms->ds", _MODULES, _weighted(modules[:, :, 0:2], modules[:, :, 2:4]))
        function_words = sums[:, 2:4]
        lengths = _weighted(sums[:, 0:2] - function_words, function_words)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = (matches / lengths).T
            f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
            penalty = _GAMMA * (counts @ chunks / sums[:, 21:23].mean(axis=1)) ** _BETA
            found = f_mean * (1 - penalty)
        return np.where(np.isnan(found), 0.0, found)  # no word is matched


def _weighted(content: Float, function: Float) -> Float:
    return _DELTA * content + (1 - _DELTA) * function


def caption_measures(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Measure]:
    """Return METEOR and CIDEr of the answers to N items, as `COCOEvalCap` makes them.

    CIDEr weighs words by the number of items whose true texts hold them. These numbers are those of the N items, also
    for samples of them.

    Args:
        answers: N texts.
        truths: for each of them one or more true texts.

    Raises:
        UserError: pycocoevalcap or Java fails.
    """
    try:
        return _measured(answers, truths)
    except (OSError, ValueError, ArithmeticError, AssertionError) as error:
        raise UserError("pycocoevalcap failed", met=str(error), do=f"check that java runs, and {INSTALL}") from None


def _measured(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Measure]:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
        known = _tokenised(tokenizer, truths)
        given = _tokenised(tokenizer, [[text] for text in answers])
        meteor = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
        lines = [meteor._stat(given[n][0], known[n]) for n in range(len(answers))]
        _, cider = importlib.import_module("pycocoevalcap.cider.cider").Cider().compute_score(known, given)
    statistics = np.array([line.split() for line in lines], np.float64).reshape(len(lines), _STATISTICS)
    cider = np.asarray(cider, np.float64)
    return {"METEOR": [Meteor(statistics)], "CIDEr": [Ratio(cider, np.ones(len(cider)))]}


def _tokenised(tokenizer: Any, texts: Sequence[Sequence[str]]) -> Mapping[int, list[str]]:
    """Return the words of texts, in lower case and without punctuation, by the number of their item.

    The tokenizer reads a text per line. So the texts become single lines, and none of them is empty: a full stop,
    which is punctuation, ends each.
    """
    lines = [[" ".join(text.encode("utf-8", "replace").decode("utf-8").split()) + " ." for text in of] for of in texts]
    found: dict[int, list[str]] = tokenizer.tokenize(
        {number: [{"caption": text} for text in of_item] for number, of_item in enumerate(lines)}
    )
    if [len(found.get(number, ())) for number in range(len(lines))] != [len(of_item) for of_item in lines]:
        raise ValueError("the tokenizer returned another number of lines")
    return found
