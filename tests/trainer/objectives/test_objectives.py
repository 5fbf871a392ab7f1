"""The objectives besides the dual loop, and what they share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import UserError
from trainer.data.batch import Batch
from trainer.model.captioner import Caption, captions_of
from trainer.model.generation import Answers
from trainer.model.prompts import Prompts
from trainer.model.tokenizer import byte_tokenizer
from trainer.objectives import load_objective
from trainer.objectives.language import caption_statistics
from trainer.objectives.reverse import cells_from_logits
from trainer.objectives.step import Step

TEXTS = [["the left eye."], ["a white helmet", "a helmet"]]


def in_words(batch: Batch, texts: list[list[str]] = TEXTS) -> Batch:
    return replace(batch, texts=texts)


def alone(loop: Step, batch: Batch, i: int, text: str) -> float:
    """The description loss of one object by hand: unpadded, mean over the answer's tokens and the end."""
    model, prompts = loop.model, loop.model.prompts
    region = batch.frames[0].prompt_masks[i : i + 1, None]
    answer = [*prompts.encode(text), prompts.end_ids[0]]
    rows = prompts.pack([prompts.describe("x", [int(region.sum())], answer)], model.device)
    visual_tokens = model.encode_image(batch.frames[0].pixel_values[i : i + 1])
    states = model.run_language_model(
        model.embed_rows(rows, visual_tokens, torch.tensor([0]), region), rows.attention, rows.positions
    )
    shares = model.language_model.lm_head(states[0]).log_softmax(-1)
    first = rows.ids.shape[1] - len(answer)
    return -sum(shares[first + k - 1, token].item() for k, token in enumerate(answer)) / len(answer)


def test_describing_is_the_cross_entropy_of_the_text_and_its_end(make_loop, batch: Batch):
    loop = make_loop().eval()
    texts = [["the left eye."], ["a white helmet"]]
    result = loop(in_words(batch, texts), "describe")
    wanted = sum(alone(loop, batch, i, own[0]) for i, own in enumerate(texts)) / 2
    assert result["loss"].item() == result["caption"].item() == pytest.approx(wanted, rel=1e-5)


def test_each_text_of_an_object_comes_up_before_one_comes_twice(make_loop, batch: Batch):
    passes, texts = make_loop().passes, [["one"], ["a", "b", "c", "d", "e"]]
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


@pytest.mark.parametrize("objective", ["describe", "reverse"])
def test_every_trainable_tensor_takes_part_and_the_named_ones_are_not_moved(make_loop, batch: Batch, objective: str):
    """DDP averages what takes part. What no loss reaches must be named in `unreached_parts`, and nothing else."""
    loop = make_loop()
    loop(in_words(batch), objective)["loss"].backward()
    gradients = {name: p.grad for name, p in loop.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    moved = {part: any(g.any() for n, g in gradients.items() if part in n) for part in loop.config.trainable}
    unreached = {*load_objective(objective).unreached_parts} & {*moved}
    assert {part for part, reached in moved.items() if not reached} == unreached


def test_the_mask_learns_from_the_caption_that_it_lets_tell(make_loop, batch: Batch, monkeypatch: pytest.MonkeyPatch):
    """Cut the factors that carry the gradient, and nothing reaches the mask: the choice of cells has none."""
    loop = make_loop()
    result = loop(in_words(batch), "reverse")
    decoder = [p for n, p in loop.named_parameters() if "sam_mask_decoder" in n and p.requires_grad]
    carried = torch.autograd.grad(result["loss"], decoder, allow_unused=True)
    assert any(g is not None and g.any() for g in carried)
    original = cells_from_logits
    monkeypatch.setattr(
        "trainer.objectives.reverse.cells_from_logits", lambda logits: tuple(t.detach() for t in original(logits))
    )
    cut = loop(in_words(batch), "reverse")
    assert torch.equal(cut["loss"], result["loss"])  # forward, the factors are 1
    assert not any(g is not None and g.any() for g in torch.autograd.grad(cut["loss"], decoder, allow_unused=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_cells_of_a_predicted_mask_are_those_of_the_recipe(seed: int, bias: float):
    logits = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(seed)) + bias
    logits.requires_grad_(True)
    cells, scale = cells_from_logits(logits)
    assert torch.equal(scale.detach(), torch.ones(2, 16, 16))
    for mask, own, share in zip(logits.detach() > 0, cells, logits.detach().sigmoid(), strict=True):
        wanted = np.asarray(Image.fromarray(mask.numpy().view(np.uint8)).resize((16, 16), Image.Resampling.NEAREST)) > 0
        assert (own.numpy() >= wanted).all()
        if wanted.sum() >= 4:
            assert np.array_equal(own.numpy(), wanted)
        else:
            assert own.sum() == 4
            means = share.view(16, 16, 16, 16).mean((1, 3)).numpy()
            added = own.numpy() & ~wanted
            assert means[added].min() >= means[~own.numpy()].max() - 1e-6
    (gradient,) = torch.autograd.grad(scale[0, 3, 5], logits)
    share = logits.detach().sigmoid()[0]
    inside = torch.zeros(256, 256, dtype=torch.bool)
    inside[48:64, 80:96] = True
    assert torch.allclose(gradient[0], torch.where(inside, share * (1 - share) / 256, 0.0), atol=1e-7)
    assert not gradient[1].any()


def test_what_lacks_a_text_is_named(make_loop, batch: Batch):
    loop = make_loop()
    for objective in ("describe", "reverse"):
        with pytest.raises(UserError, match=rf"sample {batch.keys[1]}: an object has no text"):
            loop(in_words(batch, [["a"], []]), objective)


def test_statistics_of_captions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    said = caption_statistics([[1, 2, 1, 2], [3]], [True, False], logits)
    assert said["caption_tokens"] == 2.5 and said["at_limit"] == 0.5
    assert said["distinct_2"].item() == pytest.approx(2 / 3)  # (1, 2) twice, (2, 1) once
    assert said["entropy"].item() == pytest.approx(math.log(4) / 2, rel=1e-6)
    assert caption_statistics([[5]], [True], logits)["distinct_2"] == 1


def answers(rows: list[list[int]]) -> Answers:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Answers(ids, valid, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def test_captions_without_what_ended_them():
    qwen = Prompts(byte_tokenizer(), "qwen_chat", vocabulary=272)
    cat = qwen.encode("cat")
    assert captions_of(answers([[*cat, *qwen.end_ids], cat]), qwen) == [Caption(cat, True), Caption(cat, False)]
    phi3 = Prompts(byte_tokenizer(), "phi3_chat", vocabulary=272)  # its end is five letters and more
    written = [phi3.encode("cat<|end|>"), phi3.encode("cat<|en"), phi3.encode("<|end|>")]
    first, second, third = captions_of(answers(written), phi3)
    assert first == Caption(cat, True) and first.end(phi3) == phi3.encode("<|end|>")
    assert second == Caption(written[1], False) and second.end(phi3) == []
    assert third.words and not third.ended  # a caption has words


def test_the_dual_loop_where_the_end_is_written_in_letters(make_loop, batch: Batch):
    """Sa2VA's 4B has phi3_chat's template, and no token for its end."""
    loop = make_loop()
    loop.model.prompts = Prompts(byte_tokenizer(), "phi3_chat", loop.model.embedding.num_embeddings)
    result = loop(batch, "dual")
    assert result["loss"].isfinite() and result["at_limit"] == 1
