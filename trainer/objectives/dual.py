"""Objective dual: mask -> caption -> mask. Learns from masks alone, through captions that the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.batch import PairBatch, required
from trainer.model.captioner import Caption, Captioner, captions_of
from trainer.objectives.gumbel import straight_through_gumbel
from trainer.objectives.judging import POINTS_PER_SIDE, Judged, compare_masks, other_objects
from trainer.objectives.language import caption_statistics
from trainer.objectives.metrics import mask_metrics
from trainer.objectives.noise import uniform
from trainer.objectives.objective import Objective
from trainer.objectives.passes import Passes, cross_entropy, full_precision
from trainer.objectives.teacher import Teacher


class Dual(Objective[PairBatch]):
    """Frame 1's regions are described, and frame 2 is segmented from these captions."""

    training_fields = ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2")
    judging_fields = training_fields
    needs = "regions"
    loss_weights: ClassVar = {
        "bce": "lambda_mask",
        "dice": "lambda_dice",
        "lang": "lambda_lang",
        "anchor": "lambda_anchor",
    }
    target_frame = 2
    shows_region = True
    swaps_captions = True

    def losses(self, batch: PairBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        passes = self.passes
        described, segmented = batch.frames
        assert self.teacher is not None
        visual_tokens = passes.encode_image(described)
        captions = pseudo_captions(passes, self.teacher, batch, visual_tokens, draws)
        sampled = sample_captions(passes, batch, visual_tokens, captions, draws)
        rows = passes.segmentation_rows(batch, sampled.words, draws)
        sam_features = passes.encode_sam(segmented)
        second = passes.encode_second_image(batch, visual_tokens)
        logits, lang = passes.predict_masks(batch, rows, second, sam_features, sampled.embeddings)
        losses = passes.mask_losses(logits, required(segmented.masks), draws)
        statistics = caption_statistics(sampled.words, [c.ended for c in captions], sampled.logits[sampled.is_word])
        return {**losses, "lang": lang, "anchor": sampled.anchor, **statistics}

    def judge(self, batch: PairBatch, side: int = POINTS_PER_SIDE) -> Judged:
        """Describe frame 1's regions greedily, and segment frame 2 from these captions (the cycle)."""
        cycle = self.cycle(batch, side)
        return Judged(cycle.values, cycle.captions, cycle.logits)

    def cycle(self, batch: PairBatch, side: int = POINTS_PER_SIDE) -> Cycle:
        """Do what `judge` does, and say how probable the captions are."""
        passes = self.passes
        model = self.passes.model
        described, segmented = batch.frames
        masks = required(segmented.masks)
        visual_tokens = passes.encode_image(described)
        sam_features = passes.encode_sam(segmented)
        question = passes.captioner_inputs(batch, visual_tokens)
        length = passes.config.max_caption_tokens
        each = torch.zeros(len(masks), length, device=model.device)
        answers = Captioner(model)(*question, length, any_process=passes.any_process, log_probability=each)
        words = [caption.words for caption in captions_of(answers, model.prompts)]
        second = passes.encode_second_image(batch, visual_tokens)
        logits, _ = passes.predict_masks(batch, passes.segmentation_rows(batch, words, None), second, sam_features)
        values = compare_masks(logits, masks, side)
        values["swap_gap"] = torch.full_like(values["iou"], torch.nan)
        if passes.any_process(len(words) > 1):
            swapped = [words[i] for i in other_objects(batch.image_of_object.tolist())]
            wrong, _ = passes.predict_masks(batch, passes.segmentation_rows(batch, swapped, None), second, sam_features)
            if len(words) > 1:
                values["swap_gap"] = values["iou"] - mask_metrics(wrong, masks, side)["iou"]
        captions = [model.prompts.readable(caption) for caption in words]
        log_probability = each[:, : answers.valid.shape[1]].masked_fill(~answers.valid, 0).sum(1)
        return Cycle(values, captions, logits, log_probability, answers.valid.sum(1))


@dataclass(frozen=True)
class Cycle:
    """Captions of M regions, and what is segmented from them."""

    values: dict[str, Tensor]
    """As of `Judged`."""
    captions: list[str]
    logits: Tensor
    """(M, 256, 256) float32."""
    log_probability: Tensor
    """(M,) float32: the sum over a caption's tokens, its end's included, of the logarithm of each one's probability."""
    tokens: Tensor
    """(M,) int64, the number of these tokens."""


@dataclass(frozen=True)
class SampledCaptions:
    """Captions of M objects, sampled in pass A: G words in all, K places with the end tokens."""

    embeddings: Tensor
    """(G, D), embeddings of the words of all objects in order; they carry gradient."""
    words: list[list[int]]
    """The sampled tokens of each object."""
    logits: Tensor
    """(K, V), at the words and the end tokens."""
    targets: Tensor
    """(K,) int64, the pseudo captions with their end tokens."""
    is_word: Tensor
    """(K,) bool: not an end token."""
    anchor: Tensor
    """(): cross-entropy against the pseudo captions."""


def pseudo_captions(
    passes: Passes, teacher: Teacher, batch: PairBatch, visual_tokens: Tensor, draws: list[torch.Generator]
) -> list[Caption]:
    """The teacher's captions of frame 1's regions."""
    config = passes.config
    draw = uniform(draws, config.max_caption_tokens) if config.caption_temperature > 0 else None
    question = passes.captioner_inputs(batch, visual_tokens)
    answers = teacher.generate(
        *question, config.max_caption_tokens, config.caption_temperature, draw, any_process=passes.any_process
    )
    return captions_of(answers, passes.model.prompts)


def sample_captions(
    passes: Passes, batch: PairBatch, visual_tokens: Tensor, captions: Sequence[Caption], draws: list[torch.Generator]
) -> SampledCaptions:
    """Pass A: the student gets corrupted pseudo captions of frame 1's regions and samples a word at each place.

    Only words go into pass B; what follows at an end token gets neither gradient nor attention there. Words are sampled
    among ordinary text tokens, so none can be taken for `[SEG]` or an image placeholder.
    """
    model = passes.model
    config = passes.config
    prompts = passes.model.prompts
    inputs = [
        corrupt(passes, caption.words, draw) + caption.end(prompts)
        for caption, draw in zip(captions, draws, strict=True)
    ]
    expected = [caption.words + caption.end(prompts) for caption in captions]
    regions = required(batch.frames[0].prompt_masks)
    logits, targets, row_of = passes.caption_logits(batch, visual_tokens, regions, inputs, expected)
    anchor = cross_entropy(logits, targets, row_of, len(captions))
    marks = [[True] * len(c.words) + [False] * len(c.end(prompts)) for c in captions]
    is_word = torch.tensor([mark for row in marks for mark in row], device=logits.device)
    lengths = [len(caption.words) for caption in captions]
    width = min(config.gumbel_top_k, int(prompts.ordinary.sum()))
    pairs = zip(lengths, draws, strict=True)
    draw = torch.cat([torch.rand(n, width, generator=g) for n, g in pairs]).to(logits.device)
    with full_precision(logits):
        embeddings, tokens = straight_through_gumbel(
            logits[is_word], model.embedding.weight, draw, config.gumbel_tau, prompts.ordinary.to(logits.device)
        )
    words = [part.tolist() for part in tokens.cpu().split(lengths)]
    return SampledCaptions(embeddings, words, logits, targets, is_word, anchor)


def corrupt(passes: Passes, words: Sequence[int], draw: torch.Generator) -> list[int]:
    """Replace each word by a random one with probability `corrupt_ratio`."""
    ordinary = passes.model.prompts.ordinary.nonzero()[:, 0]
    chosen = torch.rand(len(words), generator=draw) < passes.config.corrupt_ratio
    others = ordinary[torch.randint(len(ordinary), (len(words),), generator=draw)].tolist()
    return [other if c else word for word, other, c in zip(words, others, chosen.tolist(), strict=True)]
