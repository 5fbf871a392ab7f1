"""Generate answers with a cache of keys and values, one token per step for the rows that have not ended."""

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


Pick = Callable[[Tensor, int, Tensor], Tensor]
"""Returns tokens (m,) for logits (m, V) float32, the step 0, 1, ..., and the numbers (m,) int64 of the rows."""


def likeliest(logits: Tensor, step: int, rows: Tensor) -> Tensor:
    """Pick the likeliest tokens."""
    return logits.argmax(-1)


@torch.no_grad()
def generate_steps(
    model: Sa2VA,
    rows: Rows,
    embeddings: Tensor,
    max_tokens: int,
    pick: Pick,
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
        pick: chooses the next tokens of the rows that are in the batch.
        ended: returns for the tokens so far (m, t) of these rows whether the last one ends each answer, (m,) bool. A
            row that has ended leaves the batch: the layers do not run on it any more.
        keep_seg: whether to return the states at `[SEG]`.
        any_process: whether the value is true on any process. Where layers are sharded (FSDP), all processes must run
            them equally often: one whose answers have ended runs them on a row of its own until all have.
        cache: keys and values of P tokens in front of each row, and of its padding; extended in place.
    """
    batch = _Batch(model, rows, DynamicCache(config=model.language_model.config) if cache is None else cache)
    running = torch.ones(len(rows.names), dtype=torch.bool, device=embeddings.device)
    ids = torch.full((len(running), max_tokens), model.prompts.pad, device=embeddings.device)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    segs: list[tuple[Tensor, Tensor]] = []
    step = 0
    more = True
    unread = torch.zeros_like(running)
    while True:
        state = batch.read(embeddings)
        if keep_seg:  # the state of the step whose input is [SEG], after the step that generated it
            segs.append((state[unread], batch.rows[unread]))
        if not more:
            break
        token = pick(model.language_model.lm_head(state).float(), step, batch.rows)
        ids[batch.rows, step] = token = torch.where(running, token, model.prompts.pad)
        valid[batch.rows, step] = running
        unread = running & (token == model.prompts.seg)
        step += 1
        running = running & ~ended(ids[batch.rows, :step])
        yield ids[:, step - 1]
        now = running.tolist()
        more = step < max_tokens and any_process(any(now))
        # A [SEG] that is the last of max_tokens takes one more step. (The official code drops it.)
        if not more and not (keep_seg and any_process(bool(unread.any()))):
            break
        if more and not all(now):
            kept = batch.keep([n for n, runs in enumerate(now) if runs] or [0])
            running, unread, token = running[kept], unread[kept], token[kept]
        embeddings = model.embedding(token)[:, None]
    row_of_seg = torch.cat([rows.ids.new_zeros(0), *(of_step for _, of_step in segs)])
    order = row_of_seg.argsort(stable=True)
    seg_states = torch.cat([state[:0], *(of_step for of_step, _ in segs)])[order]
    return Answers(ids[:, :step], valid[:, :step], seg_states, row_of_seg[order])


class _Batch:
    """The m rows that the layers run on, and what they have read.

    Args:
        model: of the layers.
        rows: all M rows; their masks are read.
        cache: see `generate_steps`.
    """

    def __init__(self, model: Sa2VA, rows: Rows, cache: Cache) -> None:
        self._model = model
        self._cache = cache
        past = rows.mask.new_ones(len(rows.mask), int(cache.get_seq_length()))
        self._attention = torch.cat([past, rows.mask], 1)
        self._positions = (self._attention.cumsum(1) - 1).clamp_min(0)[:, past.shape[1] :]
        self._begun = False
        self.rows = torch.arange(len(rows.mask), device=rows.mask.device)
        """(m,) int64: their numbers."""

    def read(self, embeddings: Tensor) -> Tensor:
        """Read the questions (M, L, D), or later a token of each row (m, 1, D); return the last states (m, D)."""
        if self._begun:
            self._attention = torch.cat([self._attention, self._attention.new_ones(len(self.rows), 1)], 1)
            self._positions = self._positions[:, -1:] + 1
        self._begun = True
        return self._model.run_language_model(embeddings, self._attention, self._positions, self._cache)[:, -1]

    def keep(self, places: list[int]) -> Tensor:
        """Keep some of the m rows, by their places in the batch; return these places (m,) int64."""
        kept = torch.tensor(places, device=self.rows.device)
        self._cache.batch_select_indices(kept)
        self.rows, self._attention, self._positions = (
            each[kept] for each in (self.rows, self._attention, self._positions)
        )
        return kept


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
