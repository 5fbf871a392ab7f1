"""Attention of the language model, over padded rows or over rows laid end to end.

transformers knows it by the name `IMPLEMENTATION`. Padded rows go through transformers' own function for PyTorch's
`scaled_dot_product_attention`. In rows laid end to end each token sees the tokens before it of its own row, and no
mask is made, whose size would be the square of the sequence's length. A GPU then takes PyTorch's kernel for rows of
several lengths in bfloat16; otherwise `scaled_dot_product_attention` is called once for each row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.model.rows import RowLengths

log = logging.getLogger(__name__)

IMPLEMENTATION = "rows"
LENGTHS = "row_lengths"
"""Name of the argument that rows laid end to end pass through the layers of a transformers model."""
_TOLERANCE = 0.02
"""Of numbers around 1 in bfloat16, whose last bit is 0.008."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_lengths: RowLengths | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers calls it: (S, L, heads, width) for each query.

    Args:
        module: the layer's attention.
        query: (S, heads, L, width).
        key: (S, fewer heads, past + L, width).
        value: as `key`.
        attention_mask: (S, 1, L, past + L) bool; None for causal attention. Ignored with `row_lengths`.
        dropout: probability.
        scaling: of the products of query and key; None: 1 / sqrt(width).
        row_lengths: of the rows that are laid end to end in the one sequence; None where they are not.
        sliding_window: a token sees as many tokens, itself included; None: all before it.
        more: for transformers' function.
    """
    if row_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **more
        )
    return _attend_rows(query, key, value, row_lengths, dropout, scaling, sliding_window), None


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@torch.compiler.disable  # it would be compiled anew for each set of lengths
def _attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: RowLengths,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    key, value = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
    longest = max(rows.each)
    window = sliding_window if sliding_window and sliding_window < longest else None
    kernel = _varlen(query.device, _dtype(query), query.shape[3]) if dropout == 0 and not window else None
    if kernel is not None:
        flat = [each[0].transpose(0, 1).to(_dtype(query)) for each in (query, key, value)]
        return kernel(*flat, rows.bounds, rows.bounds, longest, longest, scale=scaling, window_size=(-1, 0))[None]
    return _attend_each(query, key, value, rows.each, dropout, scaling, window)


def _attend_each(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention (1, N, heads, width), row by row; query, key and value are (1, heads, N, width)."""
    rows = zip(*(each.split(lengths, 2) for each in (query, key, value)), strict=True)
    return torch.cat([_attend_row(q, k, v, dropout, scaling, window) for q, k, v in rows], 2).transpose(1, 2)


def _attend_row(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """Attention within one row (1, heads, L, width): each token sees those before it, at most `window` with itself."""
    length = query.shape[2]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(query, key, value, None, dropout, is_causal=True, scale=scaling)
    order = torch.arange(length, device=query.device)
    distance = order[:, None] - order
    return F.scaled_dot_product_attention(
        query, key, value, (distance >= 0) & (distance < window), dropout, scale=scaling
    )


def _dtype(query: Tensor) -> torch.dtype:
    """Return the type in which attention is computed: that of autocast, if it is on."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


@cache
def _varlen(device: torch.device, dtype: torch.dtype, width: int) -> Callable[..., Tensor] | None:
    """Return PyTorch's attention for rows of several lengths; None where it is missing or does not compute the same."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from torch.nn.attention import varlen

        kernel: Callable[..., Any] = varlen.varlen_attn
        return kernel if agrees(kernel, device, dtype, width) else None
    except Exception as error:  # as many as there are GPUs and versions
        log.warning("attention row by row, which is slower: %s", " ".join(str(error).split())[:200])
        return None


@torch.no_grad()
def agrees(kernel: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether `kernel` computes for two rows what `scaled_dot_product_attention` does for each; logs where not."""
    lengths = (5, 3)
    bounds = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(8, 2, width, generator=draw).to(device, dtype) for _ in range(3))
    found = kernel(query, key, value, bounds, bounds, 5, 5, scale=None, window_size=(-1, 0))
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    expected = _attend_each(q, k, v, lengths)[0]
    difference = float((found - expected).abs().max())
    if difference > _TOLERANCE:
        log.warning("attention row by row: PyTorch's kernel for rows of several lengths is off by %.3f", difference)
    return difference <= _TOLERANCE
