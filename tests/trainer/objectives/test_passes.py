"""The passes that objectives share."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.data.batch import PairBatch
from trainer.objectives.noise import object_generators
from trainer.objectives.passes import cross_entropy


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
