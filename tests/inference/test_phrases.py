"""Answers taken apart: what is a phrase, which masks it names, and what people read."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.phrases import phrase_spans, without_marks

WORDS = st.sampled_from(["a cat", "the two dogs", "it is", "naïve 犬", "on", "x"])
PARTS = st.one_of(
    st.tuples(st.just("text"), WORDS, st.just(0)),
    st.tuples(st.just("phrase"), WORDS, st.integers(0, 3)),
    st.tuples(st.just("mask"), st.just(""), st.just(1)),
)


@given(st.lists(PARTS, max_size=6), st.sampled_from(["", " "]), st.sampled_from(["", " ", ", "]))
def test_an_answer_is_taken_apart_as_it_was_put_together(parts, around, between):
    """The answer is written from its parts, and so is what is expected of it."""
    answer, plain, phrases = "", "", []
    masks = 0
    for kind, words, count in parts:
        answer += " and " if kind != "mask" else " with "  # letters, so that a mask without a phrase stays without one
        plain += " and " if kind != "mask" else " with "
        segs = between.join(["[SEG]"] * count)
        answer += {"text": words, "mask": segs, "phrase": f"<p>{around}{words}{around}</p>{around}{segs}"}[kind]
        if kind != "text":
            phrases.append((words, range(masks, masks + count), kind == "phrase"))
        plain += words + ("," * (count - 1) if between == ", " and kind == "phrase" else "")
        masks += count
    answer += " end."
    plain += " end."
    found, spans = without_marks(answer)
    squeezed = re.sub(" +", " ", plain).strip()
    assert re.sub(" +", " ", found).strip() == squeezed
    assert [(found[s.start : s.end], s.masks, s.tagged) for s in spans] == phrases
    assert [s.masks for s in phrase_spans(answer)] == [s.masks for s in spans]


MARKS = st.sampled_from(["<p>", "</p>", "[SEG]", "<vp>", " ", "\n", "a", "b.", ",", "<", "[SEG"])


@given(st.lists(MARKS, max_size=14).map("".join))
def test_whatever_the_marks_are_each_mask_has_one_place(answer):
    plain, spans = without_marks(answer)
    assert [number for span in spans for number in span.masks] == [*range(answer.count("[SEG]"))]
    tagged = [answer[s.start : s.end] for s in phrase_spans(answer) if s.tagged]
    assert tagged == re.findall(r"<p>(.*?)</p>", answer, re.DOTALL)  # what Sa2VA's and GLaMM's scripts find
    assert all(0 <= one.start <= one.end <= len(plain) for one in spans)
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert all(plain[s.start : s.end] == plain[s.start : s.end].strip() for s in spans)
    # Letters stay, and in their order.
    letters = re.sub(r"\s|</?v?p>|\[SEG\]", "", answer)
    assert re.sub(r"\s", "", plain) == letters


@pytest.mark.parametrize(
    "answer, plain, phrases",
    [
        ("It is [SEG].", "It is.", [("", [0])]),
        ("[SEG]", "", [("", [0])]),
        ("<p> A cat </p> [SEG]  on <p>a mat</p>[SEG] .", "A cat on a mat.", [("A cat", [0]), ("a mat", [1])]),
        ("<p>two cats</p> [SEG], [SEG] and [SEG]", "two cats, and", [("two cats", [0, 1]), ("", [2])]),
        ("<p>a cat</p> sits", "a cat sits", [("a cat", [])]),
        ("a <p>cat [SEG]", "a cat", [("", [0])]),
        ("a cat</p> [SEG]", "a cat", [("", [0])]),
        ("<p>a <p>cat</p> [SEG] b</p>", "a cat b", [("a cat", [0])]),
        ("<p>a [SEG] cat</p> [SEG]", "a cat", [("a cat", [0, 1])]),
        ("<p></p> [SEG] x", "x", [("", [0])]),
        ("<p>one</p> [SEG]\n<p>two\nlines</p>", "one\ntwo\nlines", [("one", [0]), ("two\nlines", [])]),
        ("two  blanks stay", "two  blanks stay", []),
        ("", "", []),
    ],
)
def test_unusual_answers(answer, plain, phrases):
    found, spans = without_marks(answer)
    assert found == plain
    assert [(found[s.start : s.end], [*s.masks]) for s in spans] == phrases
