"""Sequences of tokens with their labels, alone and stacked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

IGNORE = -100
"""Label of a position without a loss."""


@dataclass(frozen=True)
class TokenRow:
    """One sequence of L tokens."""

    name: str
    """The sample's key, for messages."""
    ids: list[int]
    labels: list[int]
    """The token to predict for each position; `IGNORE` for no loss."""
    replaced: list[bool]
    """Positions whose embedding is not taken from the token table but passed to `Sa2VA.embed_rows`."""


def count_labels(row: TokenRow) -> int:
    """Count the tokens that are predicted and have a label: the first one is never predicted."""
    return len(row.labels) - row.labels.count(IGNORE) - (row.labels[:1] not in ([], [IGNORE]))


@dataclass(frozen=True)
class PaddedRows:
    """M rows as tensors, padded to one length L."""

    names: list[str]
    ids: Tensor
    """(M, L) int64."""
    labels: Tensor
    """(M, L) int64."""
    replaced: Tensor
    """(M, L) bool."""
    attention: Tensor
    """(M, L) int64, 0 on padding."""

    @property
    def positions(self) -> Tensor:
        """(M, L) int64: positions counted without the padding."""
        return (self.attention.cumsum(1) - 1).clamp_min(0)
