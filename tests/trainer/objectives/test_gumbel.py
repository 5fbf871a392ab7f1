"""Straight-through Gumbel-softmax: hard forward to the bit, soft backward, the right distribution."""

import pytest
import torch

from trainer.objectives.gumbel import straight_through_gumbel


def chi_square(tokens: torch.Tensor, shares: torch.Tensor) -> float:
    """Pearson's statistic divided by its degrees of freedom: about 1 where `tokens` follow `shares`."""
    expected = shares.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(shares)).double()
    kept = expected > 0
    assert not counts[~kept].any()
    return (((counts - expected)[kept] ** 2 / expected[kept]).sum() / (kept.sum() - 1)).item()


def test_forward_is_bit_equal_to_the_embedding_of_the_hard_token():
    torch.manual_seed(0)
    logits = torch.randn(64, 500, requires_grad=True)
    table = torch.randn(500, 32)
    embeddings, tokens = straight_through_gumbel(logits, table, torch.rand(64, 100), tau=0.7)
    assert torch.equal(embeddings, table[tokens])
    assert embeddings.requires_grad


def test_the_gradient_is_that_of_the_soft_mixture():
    torch.manual_seed(0)
    logits = torch.randn(5, 40, requires_grad=True)
    table = torch.randn(40, 8, requires_grad=True)
    draw = torch.rand(5, 12)
    pull = torch.randn(5, 8)
    embeddings, _ = straight_through_gumbel(logits, table, draw, tau=0.7)
    (gradient,) = torch.autograd.grad((embeddings * pull).sum(), logits)

    # Independently: softmax over the whole vocabulary, minus infinity outside of the top 12.
    top = logits.detach().sort(descending=True).indices[:, :12]
    noise = torch.full_like(logits, -torch.inf).scatter(1, top, -torch.log(-torch.log(draw)))
    soft = torch.softmax(logits / 0.7 + noise, 1) @ table.detach()
    (expected,) = torch.autograd.grad((soft * pull).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    assert (gradient != 0).sum(1).max() <= 12
    assert table.grad is None


@pytest.mark.parametrize("tau", [0.7, 1.5])
def test_frequencies_follow_softmax_of_logits_over_tau(tau: float):
    torch.manual_seed(3)
    logits = torch.randn(20) * 1.5
    count = 200_000
    _, tokens = straight_through_gumbel(logits.expand(count, -1), torch.zeros(20, 1), torch.rand(count, 20), tau)
    assert chi_square(tokens, torch.softmax(logits / tau, 0)) < 2.2  # 99.9 % of the time for 19 degrees of freedom


def test_bfloat16_logits_get_float32_noise():
    """Noise made in bfloat16 has few values: among many tokens the largest is shared, and the first of them wins."""
    torch.manual_seed(4)
    logits = torch.randn(256).bfloat16() / 4
    count = 50_000
    width = 256
    draw = torch.rand(count, width)
    _, tokens = straight_through_gumbel(logits.expand(count, -1), torch.zeros(width, 1), draw, 1.0)
    shares = torch.softmax(logits.float(), 0)
    assert chi_square(tokens, shares) < 1.3  # 99.9 % of the time for 255 degrees of freedom
    coarse = (logits - torch.log(-torch.log(torch.rand(count, width, dtype=torch.bfloat16)))).argmax(1)
    assert chi_square(coarse, shares) > 4


def test_only_the_top_k_of_the_allowed_tokens_are_sampled():
    torch.manual_seed(5)
    logits = torch.arange(10.0).expand(5000, -1)
    allowed = torch.ones(10, dtype=torch.bool)
    allowed[9] = False
    _, tokens = straight_through_gumbel(logits, torch.zeros(10, 1), torch.rand(5000, 3), 5.0, allowed)
    assert set(tokens.tolist()) == {6, 7, 8}


def test_a_draw_of_zero_gives_finite_results():
    embeddings, tokens = straight_through_gumbel(torch.zeros(1, 4), torch.ones(4, 2), torch.zeros(1, 4), 0.7)
    assert embeddings.isfinite().all() and 0 <= tokens.item() < 4
