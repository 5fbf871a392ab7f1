"""The objective reverse: the cells of a predicted mask, and its gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.batch import PairBatch
from trainer.objectives.reverse import cells_from_logits

TEXTS = [["the left eye."], ["a white helmet", "a helmet"]]


def in_words(batch: PairBatch, texts: list[list[str]] = TEXTS) -> PairBatch:
    return replace(batch, texts=texts)


def test_the_caption_loss_gives_the_mask_a_gradient(make_loop, batch: PairBatch, monkeypatch: pytest.MonkeyPatch):
    """The gradient comes from the factors alone: the choice of cells has none."""
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


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_cells_of_a_predicted_mask_are_those_of_the_recipe(seed: int, bias: float):
    logits = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(seed)) + bias
    logits.requires_grad_(True)
    cells, scale = cells_from_logits(logits)
    assert torch.equal(scale.detach(), torch.ones(2, 16, 16))
    for mask, computed, share in zip(logits.detach() > 0, cells, logits.detach().sigmoid(), strict=True):
        expected = (
            np.asarray(Image.fromarray(mask.numpy().view(np.uint8)).resize((16, 16), Image.Resampling.NEAREST)) > 0
        )
        assert (computed.numpy() >= expected).all()
        if expected.sum() >= 4:
            assert np.array_equal(computed.numpy(), expected)
        else:
            assert computed.sum() == 4
            means = share.view(16, 16, 16, 16).mean((1, 3)).numpy()
            added = computed.numpy() & ~expected
            assert means[added].min() >= means[~computed.numpy()].max() - 1e-6
    (gradient,) = torch.autograd.grad(scale[0, 3, 5], logits)
    share = logits.detach().sigmoid()[0]
    inside = torch.zeros(256, 256, dtype=torch.bool)
    inside[48:64, 80:96] = True
    assert torch.allclose(gradient[0], torch.where(inside, share * (1 - share) / 256, 0.0), atol=1e-7)
    assert not gradient[1].any()
