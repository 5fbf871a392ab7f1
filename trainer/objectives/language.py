"""What a step's captions look like: numbers by which a language that drifts away is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


@torch.no_grad()
def caption_statistics(words: Sequence[Sequence[int]], ended: Sequence[bool], logits: Tensor) -> dict[str, Tensor]:
    """Numbers of a batch, each () float32.

    `caption_tokens`: mean number of words. `at_limit`: share of the pseudo captions that no end token ended.
    `distinct_2`: different pairs of neighbouring words over all such pairs of the batch (Li et al. 2016); 1 where there
    is none. `entropy`: mean over words of the student's distribution, in nats.

    Args:
        words: of each caption, as the student said it.
        ended: whether each pseudo caption reached its end.
        logits: (G, V), the student's, at the words.
    """
    pairs = [pair for said in words for pair in pairwise(said)]
    shares = logits.float().log_softmax(-1)
    numbers = {
        "caption_tokens": sum(map(len, words)) / len(words),
        "at_limit": 1 - sum(ended) / len(ended),
        "distinct_2": len({*pairs}) / len(pairs) if pairs else 1.0,
    }
    entropy = -(shares.exp() * shares).sum(-1).mean()
    return {**{name: torch.tensor(value, device=logits.device) for name, value in numbers.items()}, "entropy": entropy}
