"""Samples of like length in one optimiser step, so that little of a batch is padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet
from trainer.conversations.options import ConversationOptions
from trainer.data.choice import hash64
from trainer.data.selection import Selection

_STEPS = 50
"""Steps whose samples are sorted among one another, as in transformers' sampler for this."""
_PICTURE_TOKENS = 259
"""256 places, their two marks and a line break."""
_TURN_TOKENS = 40
"""A question for a phrase and its answer, without the phrase."""
_LETTERS_PER_TOKEN = 4


def expected_tokens(
    shards: ShardSet, options: ConversationOptions, selection: Selection | None = None
) -> NDArray[np.int64]:
    """Estimate the tokens of a row of each sample from the index: (N,).

    A picture counts 259; of a video `options.frames` pictures. Four letters count one token. Where objects have texts,
    these are asked for: each of at most `options.phrases` turns counts 40 tokens and the mean letters of a text. Else
    all letters of the sample are in the row. The sum is at most `options.max_row_tokens`. Sets of older releases know
    neither frames nor letters: a sample counts as a picture without them.
    """
    index = shards.index
    known = index.dtype.names or ()
    frames = index["frames"].astype(np.int64) if "frames" in known else np.ones(len(index), np.int64)
    letters = index["letters"].astype(np.int64) if "letters" in known else np.zeros(len(index), np.int64)
    texts = index["texts"].astype(np.int64)
    pictures = np.where(frames > 1, options.frames, frames)
    askable = texts if selection is None else selection.counts("texts")
    turns = np.full(len(index), options.phrases) if options.with_replacement else np.minimum(askable, options.phrases)
    asked = turns * (_TURN_TOKENS + letters // np.maximum(texts, 1) // _LETTERS_PER_TOKEN)
    words = np.where(texts > 0, asked, letters // _LETTERS_PER_TOKEN)
    return np.minimum(pictures * _PICTURE_TOKENS + words, options.max_row_tokens)


def group_by_length(
    order: NDArray[np.int64],
    windows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    per_step: int,
    salt: int,
) -> NDArray[np.int64]:
    """Reorder an epoch so that the samples of each optimiser step are alike in length.

    The samples of up to 50 steps are sorted, cut into steps, and these steps are shuffled: so lengths neither rise nor
    fall over the epoch. Only steps inside one window are sorted together, so that no tar is needed longer than without.
    The samples of a step do not depend on the number of processes, as long as these take as many together.

    Args:
        order: (S,), the epoch's order; what fills no step stays at its end.
        windows: (S,), the window of each of `order`.
        lengths: (S,), the length of each of `order`.
        per_step: samples of a step.
        salt: seed of the shuffling.
    """
    steps = len(order) // per_step
    grouped = order.copy()
    first = windows[: steps * per_step : per_step]
    last = windows[per_step - 1 : steps * per_step : per_step]
    begin = 0
    while begin < steps:
        end = begin + 1
        while end < min(steps, begin + _STEPS) and first[end] == last[end] == first[begin] == last[begin]:
            end += 1
        part = slice(begin * per_step, end * per_step)
        alike = np.argsort(lengths[part], kind="stable").reshape(-1, per_step)
        shuffled = np.argsort(hash64(np.arange(begin, end, dtype=np.uint64), salt + 2), kind="stable")
        grouped[part] = order[part][alike[shuffled].ravel()]
        begin = end
    return grouped
