"""Descriptions of regions, generated with a cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trainer.model.prompts import Rows
from trainer.model.sa2va import Sa2VA


@dataclass(frozen=True)
class Captions:
    """M generated captions of at most T tokens."""

    ids: Tensor
    """(M, T) int64; the end token is one of them. What follows it is padding."""
    valid: Tensor
    """(M, T) bool: the tokens that count, up to and with the end token."""

    def tokens(self) -> list[list[int]]:
        """The valid tokens of each caption, with the end token where it was reached."""
        return [row[mask].tolist() for row, mask in zip(self.ids.cpu(), self.valid.cpu(), strict=True)]


class Captioner(nn.Module):
    """Generation as the forward of a module, so that `torch.func.functional_call` can run it with other weights."""

    def __init__(self, model: Sa2VA) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(
        self,
        rows: Rows,
        seen: Tensor,
        image_of_row: Tensor,
        regions: Tensor,
        max_tokens: int,
        temperature: float = 0.0,
        uniform: Tensor | None = None,
    ) -> Captions:
        """Answer rows that end with a question. Only text and the end token are generated, and at least one token.

        Args:
            rows: M rows, padded at their start.
            seen: (B, 256, 4C), what `Sa2VA.see` returns.
            image_of_row: (M,) int64.
            regions: (M, R, 16, 16) bool.
            max_tokens: T.
            temperature: 0 takes the likeliest token, above that tokens follow softmax(logits / temperature).
            uniform: (M, T) float32 in [0, 1), the draws; needed above temperature 0.
        """
        model = self.model
        end = model.prompts.end
        text = model.prompts.ordinary.to(seen.device)
        text_or_end = text.clone()
        text_or_end[end] = True
        cache = DynamicCache(config=model.language_model.config)
        embeddings = model.embed(rows, seen, image_of_row, regions)
        attention, positions = rows.attention, rows.positions
        running = torch.ones(len(rows.names), dtype=torch.bool, device=seen.device)
        ids, valid = [], []
        for t in range(max_tokens):
            state = model.read(embeddings, attention, positions, cache)[:, -1]
            logits = model.language_model.lm_head(state).float()
            logits = logits.masked_fill(~(text if t == 0 else text_or_end), -torch.inf)
            token = choose(logits, temperature, None if uniform is None else uniform[:, t].to(logits.device))
            ids.append(torch.where(running, token, model.prompts.pad))
            valid.append(running)
            running = running & (token != end)
            if t + 1 == max_tokens or not running.any():
                break
            embeddings = model.embedding(ids[-1])[:, None]
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], 1)
            positions = positions[:, -1:] + 1
        return Captions(torch.stack(ids, 1), torch.stack(valid, 1))


def choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """A token for each row of logits (M, V): (M,) int64.

    The likeliest at temperature 0; else one that follows softmax(logits / temperature), by the draws `uniform` (M,) in
    [0, 1).
    """
    if temperature == 0:
        return logits.argmax(-1)
    assert uniform is not None
    shares = (logits.float() / temperature).softmax(-1).cumsum(-1)
    # Shares end at a little more or less than 1, and a draw may be rounded up to 1: stay below the end.
    draws = (uniform[:, None] * shares[:, -1:]).minimum(shares[:, -1:].nextafter(shares.new_zeros(())))
    return torch.searchsorted(shares, draws, right=True).squeeze(1)
