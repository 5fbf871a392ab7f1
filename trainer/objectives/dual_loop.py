"""mask -> caption -> mask: learning from masks alone, through words that nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.captioner import Caption, captions_of
from trainer.objectives.gumbel import straight_through_gumbel
from trainer.objectives.language import caption_statistics
from trainer.objectives.noise import uniform
from trainer.objectives.passes import Batch, Passes, cross_entropy, full_precision
from trainer.objectives.teacher import Teacher


@dataclass(frozen=True)
class Spoken:
    """What pass A says of each object."""

    embeddings: Tensor
    """(G, D), the embeddings of all objects' words one after the other; carry gradient."""
    words: list[list[int]]
    """The sampled tokens of each object, G in all."""
    logits: Tensor
    """(K, V): of the words and of the end tokens."""
    targets: Tensor
    """(K,): the pseudo captions with their end tokens."""
    is_word: Tensor
    """(K,) bool: not an end token."""
    anchor: Tensor
    """(): cross-entropy against the pseudo captions."""


def dual_loop(passes: Passes, teacher: Teacher, batch: Batch, draws: list[torch.Generator]) -> dict[str, Tensor]:
    """The losses and statistics of a step, each ().

    Args:
        batch: on the device; frame 1 is described, frame 2 segmented.
        draws: a generator an object.
    """
    model = passes.model
    visual_tokens = model.encode_image(batch["pixel_values1"])
    captions = pseudo_captions(passes, teacher, batch, visual_tokens, draws)
    spoken = pass_a(passes, batch, visual_tokens, captions, draws)
    rows = passes.question(batch, spoken.words, draws)
    sam_features = model.encode_sam(batch["g_pixel_values2"])
    logits, lang = passes.segment(
        batch, rows, passes.encode_second_image(batch, visual_tokens), sam_features, spoken.embeddings
    )
    losses = passes.mask_losses(logits, batch["masks2"], draws)
    statistics = caption_statistics(spoken.words, [c.ended for c in captions], spoken.logits[spoken.is_word])
    return {**losses, "lang": lang, "anchor": spoken.anchor, **statistics}


def pseudo_captions(
    passes: Passes, teacher: Teacher, batch: Batch, visual_tokens: Tensor, draws: list[torch.Generator]
) -> list[Caption]:
    """The teacher's captions of frame 1's regions."""
    config = passes.config
    draw = uniform(draws, config.max_caption_tokens) if config.caption_temperature > 0 else None
    question = passes.description_question(batch, visual_tokens)
    answers = teacher.describe(
        *question, config.max_caption_tokens, config.caption_temperature, draw, any_process=passes.any_process
    )
    return captions_of(answers, passes.model.prompts)


def pass_a(
    passes: Passes, batch: Batch, visual_tokens: Tensor, captions: Sequence[Caption], draws: list[torch.Generator]
) -> Spoken:
    """The student reads the corrupted captions of frame 1 and says the next word at each place.

    Only the words get on to pass B: what stands at an end token or behind it has neither gradient nor attention
    there. Words are sampled among text alone, so that they cannot be mistaken for `[SEG]` or an image place.
    """
    model, config, prompts = passes.model, passes.config, passes.model.prompts
    fed = [
        corrupted(passes, caption.words, draw) + caption.end(prompts)
        for caption, draw in zip(captions, draws, strict=True)
    ]
    wanted = [caption.words + caption.end(prompts) for caption in captions]
    logits, targets, row_of = passes.describe(batch, visual_tokens, batch["prompt_masks1"], fed, wanted)
    anchor = cross_entropy(logits, targets, row_of, len(captions))
    marks = [[True] * len(c.words) + [False] * len(c.end(prompts)) for c in captions]
    is_word = torch.tensor([mark for row in marks for mark in row], device=logits.device)
    lengths = [len(caption.words) for caption in captions]
    width = min(config.gumbel_top_k, int(prompts.ordinary.sum()))
    pairs = zip(lengths, draws, strict=True)
    draw = torch.cat([torch.rand(n, width, generator=g) for n, g in pairs]).to(logits.device)
    with full_precision(logits):
        given, tokens = straight_through_gumbel(
            logits[is_word], model.embedding.weight, draw, config.gumbel_tau, prompts.ordinary.to(logits.device)
        )
    words = [part.tolist() for part in tokens.cpu().split(lengths)]
    return Spoken(given, words, logits, targets, is_word, anchor)


def corrupted(passes: Passes, words: Sequence[int], draw: torch.Generator) -> list[int]:
    """Each word replaced with probability `corrupt_ratio` by a random one."""
    ordinary = passes.model.prompts.ordinary.nonzero()[:, 0]
    chosen = torch.rand(len(words), generator=draw) < passes.config.corrupt_ratio
    others = ordinary[torch.randint(len(ordinary), (len(words),), generator=draw)].tolist()
    return [other if c else word for word, other, c in zip(words, others, chosen.tolist(), strict=True)]
