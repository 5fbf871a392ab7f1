"""Statistics of a step's captions, which show a language that collapses or drifts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


@torch.no_grad()
def caption_statistics(words: Sequence[Sequence[int]], ended: Sequence[bool], logits: Tensor) -> dict[str, Tensor]:
    """Statistics of a batch by name, each () float32.

    `caption_tokens`: mean number of words per caption. `at_limit`: share of the pseudo captions without an end token.
    `distinct_2`: distinct pairs of neighbouring words over all such pairs (Li et al. 2016); 1 if there are none.
    `entropy`: mean entropy of the student's distribution per word, in nats.

    Args:
        words: the tokens that the student sampled for each caption.
        ended: whether each pseudo caption has an end token.
        logits: (G, V), the student's logits for the words.
    """
    pairs = [pair for caption in words for pair in pairwise(caption)]
    log_probabilities = logits.float().log_softmax(-1)
    numbers = {
        "caption_tokens": sum(map(len, words)) / len(words),
        "at_limit": 1 - sum(ended) / len(ended),
        "distinct_2": len({*pairs}) / len(pairs) if pairs else 1.0,
    }
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
    return {**{name: torch.tensor(value, device=logits.device) for name, value in numbers.items()}, "entropy": entropy}
