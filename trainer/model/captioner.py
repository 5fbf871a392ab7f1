"""Generate descriptions of regions for training: text tokens alone, greedily or sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trainer.model.compiled import uncompiled
from trainer.model.generation import Answers, generate
from trainer.model.prompts import IMAGE_TOKENS, Prompts
from trainer.model.rows import Rows, TokenRow, common_start, cut_row
from trainer.model.sa2va import Sa2VA


@dataclass(frozen=True)
class Caption:
    """A generated description."""

    words: list[int]
    """Tokens of text, at least one."""
    ended: bool
    """Whether the end was generated; else the description was cut at the limit."""

    def end(self, prompts: Prompts) -> list[int]:
        """Return the end tokens that follow the words, if any."""
        return prompts.end_ids if self.ended else []


def captions_of(answers: Answers, prompts: Prompts) -> list[Caption]:
    """Return what `Captioner` generated, without end tokens."""
    captions = []
    for ids in answers.tokens():
        if len(prompts.end_ids) == 1:
            ended = ids[-1] == prompts.end_ids[0]
            captions.append(Caption(ids[:-1] if ended else ids, ended))
        else:  # the end mark is letters, which may share a token with the last word
            ended = bool(prompts.ended(torch.tensor([ids]))[0])
            words = prompts.letters(prompts.answer(ids)) if ended else ids
            captions.append(Caption(words, ended) if words else Caption(ids, False))
    return captions


class Captioner(nn.Module):
    """Generation as the forward of a module, so that `torch.func.functional_call` can run it with other weights."""

    def __init__(self, model: Sa2VA) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(
        self,
        rows: Sequence[TokenRow],
        visual_tokens: Tensor,
        image_of_row: Tensor,
        regions: Tensor,
        max_tokens: int,
        temperature: float = 0.0,
        uniform: Tensor | None = None,
        any_process: Callable[[bool], bool] = bool,
        log_probability: Tensor | None = None,
    ) -> Answers:
        """Answer rows that end with a question, with one or more tokens of text and the end token.

        Args:
            rows: M rows with a picture and a region each.
            visual_tokens: (B, 256, 4C), see `Sa2VA.encode_image`.
            image_of_row: (M,) int64.
            regions: (M, R, 16, 16) bool.
            max_tokens: T.
            temperature: 0 takes the likeliest token; else tokens are sampled from softmax(logits / temperature).
            uniform: (M, T) float32 in [0, 1), random numbers; needed above temperature 0.
            any_process: see `generate`.
            log_probability: (M, T) float32, gets the log-probability of each token among all; what stands after the
                end of an answer has no meaning.
        """
        model = self.model
        prompts = model.prompts
        text = prompts.ordinary.to(visual_tokens.device)
        text_or_end = text.clone()
        text_or_end[prompts.end_ids] = True

        def pick(logits: Tensor, step: int, rows: Tensor) -> Tensor:
            allowed = logits.masked_fill(~(text if step == 0 else text_or_end), -torch.inf)
            tokens = choose(allowed, temperature, None if draws is None else draws[rows, step])
            if log_probability is not None:
                log_probability[rows, step] = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            return tokens

        draws = None if uniform is None else uniform.to(visual_tokens.device)
        with uncompiled(model):
            rest, embeddings, cache = read_pictures(model, rows, visual_tokens, image_of_row, regions)
            ended = prompts.ended
            return generate(model, rest, embeddings, max_tokens, pick, ended, any_process=any_process, cache=cache)


def read_pictures(
    model: Sa2VA, rows: Sequence[TokenRow], visual_tokens: Tensor, image_of_row: Tensor, regions: Tensor
) -> tuple[Rows, Tensor, DynamicCache]:
    """Run what questions about regions have in common once for each picture; arguments as of `Captioner.forward`.

    Rows begin with the same tokens, and up to the first one of a region these depend on the picture alone. Nothing is
    shared where layers attend within a sliding window: the padding between the common tokens and the rest of a shorter
    row would count as tokens of its window.

    Returns:
        The rest of the rows, padded at its start, its embeddings, and the keys and values of what comes before it.
    """
    prompts = model.prompts
    cache = DynamicCache(config=model.language_model.config)
    whole = prompts.padded(rows, model.device, left=True)
    embeddings = model.embed_rows(whole, visual_tokens, image_of_row, regions)
    if any(cache.is_sliding):
        return whole, embeddings, cache
    shared = min(common_start(rows), *(_first_of_region(row, prompts.context) for row in rows))
    pictures = len(visual_tokens)
    starts = prompts.padded([cut_row(rows[0], 0, shared)] * pictures, model.device)
    shown = model.embed_rows(starts, visual_tokens, torch.arange(pictures, device=model.device))
    model.run_language_model(shown, starts.mask, starts.positions, cache)
    cache.batch_select_indices(image_of_row)
    rest = prompts.padded([cut_row(row, shared) for row in rows], model.device, left=True)
    return rest, embeddings[:, shared:], cache


def _first_of_region(row: TokenRow, context: int) -> int:
    """Return the position of the first visual token of a row that is a region's."""
    return [n for n, token in enumerate(row.ids) if token == context][IMAGE_TOKENS]


def choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """Choose a token for each row of logits (M, V): (M,) int64.

    The likeliest at temperature 0, else a sample of softmax(logits / temperature) by the random numbers `uniform` (M,)
    in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(-1)
    assert uniform is not None
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    # The sums end a little above or below 1, and a random number may be rounded up to 1: stay below the end.
    end = cumulative[:, -1:]
    draws = (uniform[:, None] * end).minimum(end.nextafter(end.new_zeros(())))
    return torch.searchsorted(cumulative, draws, right=True).squeeze(1)
