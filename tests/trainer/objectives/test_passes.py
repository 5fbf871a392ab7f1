"""The passes that objectives share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conversations import about_objects, conversation_batch
from trainer.config import Config
from trainer.data.batch import Batch, PairBatch
from trainer.objectives.noise import object_generators
from trainer.objectives.passes import cross_entropy


@pytest.mark.parametrize("objective", ["dual", "segment", "describe", "reverse", "converse"])
def test_packed_rows_train_as_padded_ones_do(make_loop, config: Config, batch: PairBatch, objective: str):
    """Losses and gradients, in float32; with gradient checkpointing they are computed again in the backward pass."""
    results = []
    for packing in (True, False):
        config.packing = packing
        loop = make_loop(config)
        if objective == "segment":
            loop.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        given: Batch = batch
        if objective == "converse":
            given = conversation_batch(batch, loop.model.prompts)
        elif objective in ("segment", "describe"):
            given = about_objects(batch, loop.model.prompts, objective)
        losses = loop(given, objective)
        losses["loss"].backward()
        results.append((losses, {n: p.grad for n, p in loop.named_parameters() if p.grad is not None}))
    (packed, found), (padded, expected) = results
    assert packed["padding"] == 0 < padded["padding"]
    assert packed["tokens"] == padded["tokens"]
    for name in padded.keys() - {"padding"}:
        assert packed[name].item() == pytest.approx(padded[name].item(), rel=1e-5, abs=1e-6), name
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_each_text_of_an_object_comes_up_before_one_comes_twice(make_loop, batch: PairBatch):
    passes = make_loop().passes
    texts = [["one"], ["a", "b", "c", "d", "e"]]
    taken = [passes.chosen_texts(replace(batch, texts=texts, turns=[turn, turn])) for turn in range(15)]
    assert {first for first, _ in taken} == {"one"}
    rounds = [[second for _, second in taken[start : start + 5]] for start in (0, 5, 10)]
    assert all(sorted(each) == texts[1] for each in rounds)
    passes.config.seed = 3
    assert [passes.chosen_texts(replace(batch, texts=texts, turns=[0, t]))[1] for t in range(5)] != rounds[0]


def test_a_long_text_is_cut_and_has_no_end(make_loop, config):
    config.max_text_tokens = 4
    passes = make_loop(config).passes
    end = passes.model.prompts.end_ids
    assert passes.caption_tokens(" four") == [*passes.model.prompts.encode("four"), *end]
    assert passes.caption_tokens("fives") == passes.model.prompts.encode("five")


def test_a_text_of_a_dataset_has_no_marks(make_loop):
    passes = make_loop().passes
    prompts = passes.model.prompts
    tokens = passes.caption_tokens("a [SEG]")
    assert prompts.seg not in tokens and prompts.decode(tokens) == "a [SEG]<|im_end|>"


def test_rows_weigh_equally_in_the_mean():
    logits = torch.randn(4, 5)
    targets = torch.tensor([0, 1, 2, 3])
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (each[:3].mean() + each[3]) / 2
    assert torch.allclose(cross_entropy(logits, targets, torch.tensor([0, 0, 0, 1]), 2), expected)


def test_questions_are_worded_at_random_or_as_an_evaluation_words_them(make_loop, batch, config):
    passes = make_loop().passes
    first = [row.ids for row in passes.segmentation_rows(batch, ["a cat", "a cup"], None)]
    worded = [passes.segmentation_rows(batch, ["a cat", "a cup"], object_generators(batch, seed)) for seed in range(20)]
    assert len({tuple(rows[0].ids) for rows in worded}) > 5
    config.vary_wording = False
    worded = [passes.segmentation_rows(batch, ["a cat", "a cup"], object_generators(batch, seed)) for seed in range(20)]
    assert all([row.ids for row in rows] == first for rows in worded)
