"""Generation with a cache of keys and values, a token at a time for all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from trainer.model.prompts import PackedRows
from trainer.model.sa2va import Sa2VA


@dataclass(frozen=True)
class Answers:
    """M generated answers of at most T tokens."""

    ids: Tensor
    """(M, T) int64; the end token is one of them. What follows it is padding."""
    valid: Tensor
    """(M, T) bool: the tokens that count, up to and with the end token."""
    seg_states: Tensor
    """(N, D): the states at the `[SEG]` tokens, row by row; empty unless asked for."""
    row_of_seg: Tensor
    """(N,) int64: the row of each."""

    def tokens(self) -> list[list[int]]:
        """The valid tokens of each answer, with the end token where it was reached."""
        return [row[mask].tolist() for row, mask in zip(self.ids.cpu(), self.valid.cpu(), strict=True)]


@torch.no_grad()
def generate(
    model: Sa2VA,
    rows: PackedRows,
    embeddings: Tensor,
    max_tokens: int,
    pick: Callable[[Tensor, int], Tensor],
    ended: Callable[[Tensor], Tensor],
    keep_seg: bool = False,
    any_process: Callable[[bool], bool] = bool,
) -> Answers:
    """Answer rows that end with a question.

    Args:
        model: whose language model writes.
        rows: M rows, padded at their start.
        embeddings: (M, L, D), of `rows`.
        max_tokens: T, at least 1.
        pick: from logits (M, V) float32 and the step 0, 1, ... to tokens (M,).
        ended: from the tokens so far (M, t) to (M,) bool, whether the last one ends the answer.
        keep_seg: whether to keep the states at `[SEG]`.
        any_process: whether the value is true on any process. Where layers are sharded (FSDP), all processes must run
            them equally often.
    """
    seg, pad = model.prompts.seg, model.prompts.pad
    cache = DynamicCache(config=model.language_model.config)
    attention, positions = rows.attention, rows.positions
    running = torch.ones(len(rows.names), dtype=torch.bool, device=embeddings.device)
    ids: list[Tensor] = []
    valid: list[Tensor] = []
    states: list[Tensor] = []
    row_of: list[Tensor] = []
    more, unread = True, torch.zeros_like(running)
    while True:
        state = model.run_language_model(embeddings, attention, positions, cache)[:, -1]
        if keep_seg:  # the state of the step that reads [SEG], one after the step that wrote it
            states.append(state[unread])
            row_of.append(unread.nonzero()[:, 0])
        if not more:
            break
        token = pick(model.language_model.lm_head(state).float(), len(ids))
        ids.append(torch.where(running, token, pad))
        valid.append(running)
        unread = running & (token == seg)
        running = running & ~ended(torch.stack(ids, 1))
        more = len(ids) < max_tokens and any_process(bool(running.any()))
        # A [SEG] that is the last of max_tokens is read too, at the price of one step. (The official code drops it.)
        if not more and not (keep_seg and any_process(bool(unread.any()))):
            break
        embeddings = model.embedding(ids[-1])[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], 1)
        positions = positions[:, -1:] + 1
    found, owners = torch.cat([state[:0], *states]), torch.cat([rows.ids.new_zeros(0), *row_of])
    order = owners.argsort(stable=True)
    return Answers(torch.stack(ids, 1), torch.stack(valid, 1), found[order], owners[order])
