"""Conversations depend on seed, epoch, sample and copy alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from tests.trainer.conversations.samples import check, make, objects, sample

DOG = {"objects": objects(*"abcdefgh")}


def test_the_result_depends_on_seed_epoch_key_and_copy_alone():
    of = sample(DOG, frames=9)
    first = make(of, 1, 3, 1, seed=5, phrases=2, frames=3)
    assert make(of, 1, 3, 1, seed=5, phrases=2, frames=3) == first
    others = [
        make(of, 1, 3, 1, seed=6, phrases=2, frames=3),
        make(of, 2, 3, 1, seed=5, phrases=2, frames=3),
        make(of, 1, 3, 0, seed=5, phrases=2, frames=3),
        make(of, 1, 4, 1, seed=5, phrases=2, frames=3),
        make(sample(DOG, frames=9, key="other"), 1, 3, 1, seed=5, phrases=2, frames=3),
    ]
    assert all(other != first for other in others)


def test_the_kind_is_the_given_one_the_sources_or_the_first_with_texts():
    of = sample({**DOG, "turns": [{"question": "x", "answer": "y"}]})
    assert make(of)[0][0].kind == "chat"
    assert make(of, kinds={"folder": "referring"})[0][0].kind == "referring"
    assert make(of, kinds={"sav": "referring"})[0][0].kind == "chat"
    assert make(of, kinds={"folder": "referring"}, kind="describe")[0][0].kind == "describe"
    assert make(sample(DOG))[0][0].kind == "referring"


def test_a_sample_without_a_text_is_counted():
    assert make(sample({"objects": objects([])})) == ([], {"samples without a conversation of kind referring": 1})
    assert make(sample(DOG), kind="chat") == ([], {"samples without a conversation of kind chat": 1})


def test_an_unknown_kind_is_an_error_in_one_line():
    wanted = "segment or referring or grounded_caption or regions or describe or chat"
    with pytest.raises(UserError, match=f"^kinds: no such kind of conversation; met poem; wanted {wanted}$"):
        make(sample(DOG), kind="poem")


def test_the_kinds_by_what_a_sample_has():
    turns = [{"question": "x", "answer": "y"}]
    phrase = {"start": 0, "end": 1, "objects": ["a"]}
    captions = [{"text": "No phrase.", "phrases": []}, {"text": "A.", "phrases": [phrase]}]
    conversation = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    meta = {**DOG, "turns": turns, "captions": captions, "records": [{"regions": ["a"], "conversations": conversation}]}
    kinds = []
    for name in ("turns", "captions", "records", "objects"):
        kinds.append(make(sample(meta))[0][0].kind)
        meta.pop(name)
    assert kinds == ["chat", "grounded_caption", "regions", "referring"]
    assert make(sample({**DOG, "captions": captions[:1]}))[0][0].kind == "referring"


TEXTS = st.sampled_from(["a", "gone", "x y", "<region1>", "<region2>: x", "human", "gpt", "", "?", "\u00b2"])
NAMES = (
    *("text", "objects", "phrases", "start", "end", "file", "record", "regions"),
    *("conversations", "from", "value", "description"),
)
LEAVES = TEXTS | st.integers(-2, 3) | st.none() | st.booleans() | st.floats(0, 1) | st.just("flickr")
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
)
PHRASE = st.fixed_dictionaries({"start": LEAVES, "end": LEAVES, "objects": st.just(["a"])})
RECORD = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMES, ANYTHING),
        "text": TEXTS,
        "objects": st.lists(TEXTS, max_size=2),
        "regions": st.lists(TEXTS, max_size=2),
        "phrases": st.lists(PHRASE, max_size=3),
    },
)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["expressions", "captions", "records"]), st.lists(RECORD, max_size=3) | ANYTHING)
)
def test_a_source_may_store_anything(stored):
    """Whatever stands under the names that conversations are made of: they are sound, or there is none and a count."""
    of = sample({**stored, "objects": objects("a dog")}, frames=2, cells=[[3], [0]])
    for kind in ("referring", "grounded_caption", "regions", None):
        rows, notes = make(of, kind=kind, phrases=2, negatives=0.5, other=lambda draws: "a cow")
        assert rows or notes
        for row in rows:
            check(row, of)
