"""How much a model works: pictures, tokens, objects, counted where it passes them."""

from __future__ import annotations

import torch
from torch import Tensor


class Work:
    """Amounts by kind, and by whether gradients were to flow back.

    `seen`, `looked`: pictures through the vision tower and SAM 2's image encoder. `projected`: pictures through the
    projector. `read`: tokens through the language model, without padding; `attended`: pairs of them and the tokens of
    their rows. `said`: places where a token is predicted. `pointed`: objects through the mask decoder.
    """

    def __init__(self) -> None:
        self.amounts: dict[tuple[str, bool], int | Tensor] = {}

    def add(self, kind: str, amount: int | Tensor) -> None:
        """Count `amount`, () where it is a tensor."""
        key = (kind, torch.is_grad_enabled())
        self.amounts[key] = self.amounts.get(key, 0) + amount

    def read(self, attention: Tensor, new: int) -> None:
        """Count the last `new` tokens of rows whose attention is (M, L) int64, past tokens among them."""
        lengths, fresh = attention.sum(1).float(), attention[:, -new:].sum(1).float()
        self.add("read", fresh.sum())
        self.add("attended", (fresh * lengths).sum())

    @property
    def tokens(self) -> Tensor:
        """() float32: tokens that the student reads, where gradients are to flow."""
        return torch.as_tensor(self.amounts.get(("read", True), 0.0), dtype=torch.float32)
