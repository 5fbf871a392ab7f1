"""The states at `[SEG]`, and where answers end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from trainer.model.generation import Answers, generate, generate_steps
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import byte_tokenizer

QUESTIONS = ("Please segment the dog.", "Where?")


def answer(
    model: Sa2VA, tokens: list[list[int]], count: int, visual_tokens: Tensor, names=QUESTIONS, **kwargs
) -> Answers:
    """Generate; row i writes `tokens[i]`, whatever its logits are."""
    prompts = model.prompts
    rows = prompts.padded([prompts.ask("x", text) for text in names], model.device, left=True)
    embeddings = model.embed_rows(rows, visual_tokens, torch.zeros(len(names), dtype=torch.int64))
    script = torch.tensor(tokens)
    return generate(model, rows, embeddings, count, lambda logits, t, of: script[of, t], prompts.ended, **kwargs)


@pytest.fixture(scope="module")
def visual_tokens(model: Sa2VA) -> Tensor:
    return torch.randn(1, 256, model.mlp1[0].normalized_shape[0])


def whole(model: Sa2VA, visual_tokens: Tensor, text: str, tokens: list[int]) -> Tensor:
    """States of the answer (T, D), from one pass over question and answer without cache or padding."""
    prompts = model.prompts
    asked = prompts.ask("x", text).ids
    row = prompts.padded([prompts.ask("x", text)], model.device)
    question = model.embed_rows(row, visual_tokens, torch.tensor([0]))
    embeddings = torch.cat([question, model.embedding(torch.tensor([tokens]))], 1)
    length = embeddings.shape[1]
    return model.run_language_model(embeddings, torch.ones(1, length, dtype=torch.int64), torch.arange(length)[None])[
        0, len(asked) :
    ]


def test_states_at_seg_equal_those_of_the_whole_answer(model: Sa2VA, visual_tokens: Tensor):
    seg = model.prompts.seg
    end = model.prompts.end_ids[0]
    tokens = [[65, seg, 66, seg, end], [seg, 66, 67, 68, seg]]
    answers = answer(model, tokens, 5, visual_tokens, keep_seg=True)
    assert answers.row_of_seg.tolist() == [0, 0, 1, 1]  # row by row, though they were not written so
    expected = torch.cat(
        [
            whole(model, visual_tokens, QUESTIONS[0], tokens[0])[[1, 3]],
            whole(model, visual_tokens, QUESTIONS[1], tokens[1])[[0, 4]],  # the last one was never read while writing
        ]
    )
    assert torch.allclose(answers.seg_states, expected, atol=1e-4)
    assert answers.tokens() == tokens


def test_a_final_seg_takes_one_extra_step(model: Sa2VA, visual_tokens: Tensor):
    seg = model.prompts.seg
    steps = []
    hook = model.language_model.model.register_forward_hook(lambda *_: steps.append(1))
    answers = answer(model, [[65, 66], [65, seg]], 2, visual_tokens, keep_seg=True)
    assert len(steps) == 3 and answers.row_of_seg.tolist() == [1]
    steps.clear()
    answer(model, [[65, seg], [65, seg]], 2, visual_tokens)
    assert len(steps) == 2
    steps.clear()
    answer(model, [[seg, model.prompts.end_ids[0], 65]] * 2, 3, visual_tokens, keep_seg=True)
    assert len(steps) == 2
    hook.remove()


def test_padding_on_the_left_changes_no_state(model: Sa2VA, visual_tokens: Tensor):
    seg = model.prompts.seg
    long = "Please segment " + "the long thing, " * 20
    short = "Cat?"
    together = answer(model, [[seg, 65, seg]] * 2, 3, visual_tokens, (long, short), keep_seg=True)
    alone = answer(model, [[seg, 65, seg]], 3, visual_tokens, (short,), keep_seg=True)
    assert torch.allclose(together.seg_states[together.row_of_seg == 1], alone.seg_states, atol=1e-4)
    assert not torch.allclose(together.seg_states[:2], alone.seg_states, atol=1e-2)


def test_tokens_of_a_finished_row_are_dropped(model: Sa2VA, visual_tokens: Tensor):
    seg = model.prompts.seg
    end = model.prompts.end_ids[0]
    answers = answer(model, [[end, seg, seg], [65, 66, 67]], 3, visual_tokens, keep_seg=True)
    assert answers.tokens() == [[end], [65, 66, 67]] and not len(answers.seg_states)


def test_endoftext_ends_an_answer_too(model: Sa2VA, visual_tokens: Tensor):
    (stop,) = model.prompts.encode("<|endoftext|>")
    answers = answer(model, [[65, stop, 66], [65, 66, 67]], 3, visual_tokens)
    assert [model.prompts.answer(ids) for ids in answers.tokens()] == [
        model.prompts.decode([65]),
        model.prompts.decode([65, 66, 67]),
    ]


def test_an_end_mark_in_letters_ends_an_answer():
    prompts = Prompts(byte_tokenizer(), "phi3_chat", vocabulary=272)
    assert prompts.end_texts == ["<|end|>"]
    text = "Sure, it is [SEG].<|end|>"
    ids = prompts.encode(text)
    assert len(ids) > 20  # the mark is seven tokens of text
    ended = [bool(prompts.ended(torch.tensor([ids[:n]]))) for n in range(1, len(ids) + 1)]
    assert ended == [False] * (len(ids) - 1) + [True]
    assert bool(prompts.ended(torch.tensor([prompts.encode("x<|end\n|>")])))
    assert prompts.answer(ids) == "Sure, it is [SEG]."
    both = torch.tensor([ids[-9:], prompts.encode("<|endless")])
    assert prompts.ended(both).tolist() == [True, False]


def test_steps_go_on_from_kept_keys_and_values_and_can_be_stopped(model: Sa2VA, visual_tokens: Tensor):
    prompts = model.prompts
    row = prompts.padded([prompts.ask("x", QUESTIONS[0])], model.device)
    embeddings = model.embed_rows(row, visual_tokens, torch.tensor([0]))
    tokens = [65, prompts.seg, 66, 67]

    def pick(logits: Tensor, t: int, of: Tensor) -> Tensor:
        found.append(logits)
        return torch.tensor(tokens[t : t + 1])

    logits = {}
    for kept in (0, 200):
        found: list[Tensor] = []
        cache = DynamicCache(config=model.language_model.config)
        if kept:
            model.run_language_model(embeddings[:, :kept], row.mask[:, :kept], row.positions[:, :kept], cache)
        unread = replace(row, attention=row.mask[:, kept:])
        steps = generate_steps(model, unread, embeddings[:, kept:], 4, pick, prompts.ended, keep_seg=True, cache=cache)
        assert [int(next(steps)) for _ in range(3)] == tokens[:3]
        assert torch.is_grad_enabled()  # in the caller
        steps.close()
        assert cache.get_seq_length() == row.ids.shape[1] + 2 and len(found) == 3
        logits[kept] = torch.cat(found)
    assert torch.allclose(logits[0], logits[200], atol=1e-4)
