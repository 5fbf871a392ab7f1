"""Conversations depend on seed, epoch, sample and copy alone."""

import pytest

from shards.errors import UserError
from tests.trainer.conversations.samples import make, objects, sample

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
