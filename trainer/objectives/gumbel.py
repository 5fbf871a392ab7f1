"""Straight-through Gumbel-softmax over the top-k of a vocabulary (Jang et al. 2017; Maddison et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through_gumbel(
    logits: Tensor, table: Tensor, uniform: Tensor, tau: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row and embed it; the gradient is that of the soft mixture of embeddings.

    The hard token is argmax(z / tau + g) over the top-k of z, so it follows softmax(z / tau); the soft weights are
    softmax(z / tau + g). Both are float32 whatever the logits are: bfloat16 noise has another distribution.

    Args:
        logits: (K, V).
        table: (V, D), the token embeddings; gets no gradient.
        uniform: (K, k) float32 in [0, 1), from which the noise g is made; its width is the k of top-k.
        tau: temperature.
        allowed: (V,) bool, the tokens that may be sampled; None: all.

    Returns:
        (K, D) embeddings, bit-equal to `table[tokens]`, and (K,) int64 tokens.
    """
    z = logits.float()
    if allowed is not None:
        z = z.masked_fill(~allowed, -torch.inf)
    top, candidates = z.topk(uniform.shape[-1], dim=-1)
    noise = -torch.log(-torch.log(uniform.float().clamp_min(torch.finfo(torch.float32).tiny)))
    perturbed = top / tau + noise
    tokens = candidates.gather(-1, perturbed.detach().argmax(-1, keepdim=True)).squeeze(-1)
    embeddings: Tensor = _HardForwardSoftBackward.apply(perturbed.softmax(-1), candidates, tokens, table.detach())
    return embeddings, tokens


class _HardForwardSoftBackward(torch.autograd.Function):
    """Forward `onehot @ E`; backward as if the one-hot rows were the soft weights.

    Builds neither the one-hot rows nor the candidates' embeddings (K, k, D).
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, candidates: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(candidates, table)
        return table[tokens]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        candidates, table = ctx.saved_tensors
        (grad,) = grad_outputs
        return (grad.to(table.dtype) @ table.T).float().gather(-1, candidates), None, None, None
