"""The objective describe, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shards.errors import UserError
from tests.conversations import about_objects
from trainer.data.batch import PairBatch
from trainer.model.rows import IGNORE, TokenRow
from trainer.objectives import load_objective
from trainer.objectives.step import Step

TEXTS = [["the left eye."], ["a white helmet", "a helmet"]]


def in_words(batch: PairBatch, texts: list[list[str]] = TEXTS) -> PairBatch:
    return replace(batch, texts=texts)


def alone(loop: Step, batch: PairBatch, i: int, text: str) -> float:
    """The description loss of one object by hand: unpadded, mean over the answer's tokens and the end."""
    model = loop.model
    prompts = loop.model.prompts
    region = batch.frames[0].prompt_masks[i : i + 1, None]
    answer = [*prompts.encode(text), prompts.end_ids[0]]
    question = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>\nregion1<vp>" + "<IMG_CONTEXT>" * int(region.sum()) + "</vp>"
    asked = prompts.encode(f"<|im_start|>user\n{question} Describe.<|im_end|>\n<|im_start|>assistant\n")
    labels = [IGNORE] * len(asked) + answer
    rows = prompts.padded([TokenRow("x", asked + answer, labels, [False] * len(labels))], model.device)
    visual_tokens = model.encode_image(batch.frames[0].pixel_values[i : i + 1])
    states = model.run_language_model(
        model.embed_rows(rows, visual_tokens, torch.tensor([0]), region), rows.attention, rows.positions
    )
    shares = model.language_model.lm_head(states[0]).log_softmax(-1)
    first = rows.ids.shape[1] - len(answer)
    return -sum(shares[first + k - 1, token].item() for k, token in enumerate(answer)) / len(answer)


def test_describing_is_the_cross_entropy_of_the_text_and_its_end(make_loop, batch: PairBatch):
    loop = make_loop().eval()
    texts = [["the left eye."], ["a white helmet"]]
    result = loop(about_objects(in_words(batch, texts), loop.model.prompts, "describe"), "describe")
    expected = sum(alone(loop, batch, i, choices[0]) for i, choices in enumerate(texts)) / 2
    assert result["loss"].item() == result["caption"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["describe", "reverse"])
def test_all_trainable_tensors_have_gradients_and_unreached_parts_zero_ones(
    make_loop, batch: PairBatch, objective: str
):
    """DDP averages what takes part. What no loss reaches must be named in `unreached_parts`, and nothing else."""
    loop = make_loop()
    texts = in_words(batch)
    asked = about_objects(texts, loop.model.prompts, objective) if objective == "describe" else texts
    loop(asked, objective)["loss"].backward()
    gradients = {name: p.grad for name, p in loop.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    moved = {part: any(g.any() for n, g in gradients.items() if part in n) for part in loop.config.trainable}
    unreached = {*load_objective(objective).unreached_parts} & {*moved}
    assert {part for part, reached in moved.items() if not reached} == unreached


def test_objects_without_a_text_are_named(make_loop, batch: PairBatch):
    with pytest.raises(UserError, match=rf"sample {batch.keys[1]}: an object has no text"):
        make_loop()(in_words(batch, [["a"], []]), "reverse")
