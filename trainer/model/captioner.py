"""Generate descriptions of regions for training: text tokens alone, greedily or sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.model.compiled import uncompiled
from trainer.model.generation import Answers, generate
from trainer.model.prompts import Prompts
from trainer.model.rows import Rows
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
        rows: Rows,
        visual_tokens: Tensor,
        image_of_row: Tensor,
        regions: Tensor,
        max_tokens: int,
        temperature: float = 0.0,
        uniform: Tensor | None = None,
        any_process: Callable[[bool], bool] = bool,
    ) -> Answers:
        """Answer rows that end with a question, with one or more tokens of text and the end token.

        Args:
            rows: M rows, padded at their start.
            visual_tokens: (B, 256, 4C), see `Sa2VA.encode_image`.
            image_of_row: (M,) int64.
            regions: (M, R, 16, 16) bool.
            max_tokens: T.
            temperature: 0 takes the likeliest token; else tokens are sampled from softmax(logits / temperature).
            uniform: (M, T) float32 in [0, 1), random numbers; needed above temperature 0.
            any_process: see `generate`.
        """
        model = self.model
        prompts = model.prompts
        text = prompts.ordinary.to(visual_tokens.device)
        text_or_end = text.clone()
        text_or_end[prompts.end_ids] = True

        def pick(logits: Tensor, step: int) -> Tensor:
            logits = logits.masked_fill(~(text if step == 0 else text_or_end), -torch.inf)
            return choose(logits, temperature, None if uniform is None else uniform[:, step].to(logits.device))

        embeddings = model.embed_rows(rows, visual_tokens, image_of_row, regions)
        with uncompiled(model):
            return generate(model, rows, embeddings, max_tokens, pick, prompts.ended, any_process=any_process)


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
