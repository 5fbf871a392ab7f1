"""Generate answers with a cache of keys and values, one token per step for all rows."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from trainer.model.rows import Rows
from trainer.model.sa2va import Sa2VA

_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True)
class Answers:
    """M generated answers of at most T tokens."""

    ids: Tensor
    """(M, T) int64, with the end token; padding after it."""
    valid: Tensor
    """(M, T) bool: no padding; the end token is valid."""
    seg_states: Tensor
    """(N, D): the states at the `[SEG]` tokens, row by row; empty without `keep_seg`."""
    row_of_seg: Tensor
    """(N,) int64: the row of each."""

    def tokens(self) -> list[list[int]]:
        """Return the valid tokens of each answer, with the end token where it was generated."""
        return [row[mask].tolist() for row, mask in zip(self.ids.cpu(), self.valid.cpu(), strict=True)]


@torch.no_grad()
def generate_steps(
    model: Sa2VA,
    rows: Rows,
    embeddings: Tensor,
    max_tokens: int,
    pick: Callable[[Tensor, int], Tensor],
    ended: Callable[[Tensor], Tensor],
    keep_seg: bool = False,
    any_process: Callable[[bool], bool] = bool,
    cache: Cache | None = None,
) -> Generator[Tensor, None, Answers]:
    """Answer rows that end with a question, and yield the tokens (M,) of each step; closing the generator stops it.

    Args:
        model: its language model generates.
        rows: M rows, padded at their start; of these L tokens of each the mask alone is read.
        embeddings: (M, L, D), of `rows`.
        max_tokens: T, at least 1.
        pick: returns tokens (M,) for logits (M, V) float32 and the step 0, 1, ...
        ended: returns for the tokens so far (M, t) whether the last one ends each answer, (M,) bool.
        keep_seg: whether to return the states at `[SEG]`.
        any_process: whether the value is true on any process. Where layers are sharded (FSDP), all processes must run
            them equally often.
        cache: keys and values of P tokens in front of each row, and of its padding; extended in place.
    """
    cache = DynamicCache(config=model.language_model.config) if cache is None else cache
    past = int(cache.get_seq_length())
    attention = torch.cat([rows.mask.new_ones(len(rows.names), past), rows.mask], 1)
    positions = (attention.cumsum(1) - 1).clamp_min(0)[:, past:]
    running = torch.ones(len(rows.names), dtype=torch.bool, device=embeddings.device)
    ids: list[Tensor] = []
    valid: list[Tensor] = []
    states: list[Tensor] = []
    row_of: list[Tensor] = []
    more = True
    unread = torch.zeros_like(running)
    while True:
        state = model.run_language_model(embeddings, attention, positions, cache)[:, -1]
        if keep_seg:  # the state of the step whose input is [SEG], after the step that generated it
            states.append(state[unread])
            row_of.append(unread.nonzero()[:, 0])
        if not more:
            break
        token = pick(model.language_model.lm_head(state).float(), len(ids))
        ids.append(torch.where(running, token, model.prompts.pad))
        valid.append(running)
        unread = running & (token == model.prompts.seg)
        running = running & ~ended(torch.stack(ids, 1))
        yield ids[-1]
        more = len(ids) < max_tokens and any_process(bool(running.any()))
        # A [SEG] that is the last of max_tokens takes one more step. (The official code drops it.)
        if not more and not (keep_seg and any_process(bool(unread.any()))):
            break
        embeddings = model.embedding(ids[-1])[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], 1)
        positions = positions[:, -1:] + 1
    row_of_seg = torch.cat([rows.ids.new_zeros(0), *row_of])
    order = row_of_seg.argsort(stable=True)
    seg_states = torch.cat([state[:0], *states])[order]
    return Answers(torch.stack(ids, 1), torch.stack(valid, 1), seg_states, row_of_seg[order])


def _at_once(steps: Callable[_Arguments, Generator[Tensor, None, Answers]]) -> Callable[_Arguments, Answers]:
    """Return a function that runs all steps of a generator and returns its result."""

    @wraps(steps)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Answers:
        running = steps(*args, **kwargs)
        while True:
            try:
                next(running)
            except StopIteration as end:
                answers: Answers = end.value
                return answers

    return run


generate = _at_once(generate_steps)
"""Answer rows that end with a question: `generate_steps` without stops, with the same arguments."""
