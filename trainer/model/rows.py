"""Sequences of tokens with their labels, alone and as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trainer.transfer import to_device

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


def common_start(rows: Sequence[TokenRow]) -> int:
    """Count the tokens that all rows begin with."""
    columns = enumerate(zip(*(row.ids for row in rows), strict=False))
    return next((n for n, tokens in columns if len({*tokens}) > 1), min(len(row.ids) for row in rows))


def cut_row(row: TokenRow, start: int, end: int | None = None) -> TokenRow:
    """Return the tokens of a row from `start` to `end`."""
    return TokenRow(row.name, row.ids[start:end], row.labels[start:end], row.replaced[start:end])


@dataclass(frozen=True)
class RowLengths:
    """Lengths of M rows that are laid end to end. A token sees those before it in its own row, and no others."""

    each: tuple[int, ...]
    """M lengths."""
    bounds: Tensor
    """(M + 1,) int32: where the rows begin, and where the last one ends."""


@dataclass(frozen=True)
class Rows:
    """M rows as S sequences of L tokens.

    Padded rows are sequences of one length, S = M. Packed rows are laid end to end in one sequence, S = 1.

    A place is a position counted through all sequences: position p of sequence s is place s * L + p. Places are listed
    row by row.
    """

    names: list[str]
    """M keys of samples, for messages."""
    ids: Tensor
    """(S, L) int64."""
    positions: Tensor
    """(S, L) int64, counted from 0 in each row; 0 on padding."""
    attention: Tensor | RowLengths
    """Of padded rows (S, L) int64, 0 on padding."""
    contexts: Tensor
    """(C,) int64, places of `<IMG_CONTEXT>`."""
    contexts_per_row: list[int]
    """M numbers of them."""
    replaced: Tensor
    """(G,) int64, places whose embedding is not taken from the token table: see `TokenRow.replaced`."""
    segs: Tensor
    """(N,) int64, places of `[SEG]`."""
    before_labels: Tensor
    """(K,) int64, places whose next token has a label."""
    labels: Tensor
    """(K,) int64, these labels."""
    row_of_label: Tensor
    """(K,) int64, the row of each."""

    @property
    def mask(self) -> Tensor:
        """`attention` of padded rows: (S, L) int64, 0 on padding."""
        assert isinstance(self.attention, Tensor)
        return self.attention


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that `Rows` must know."""

    pad: int
    context: int
    seg: int


def padded_rows(rows: Sequence[TokenRow], special: SpecialTokens, device: torch.device, left: bool = False) -> Rows:
    """Return rows padded to one length at their end, or `left` at their start for generation."""
    length = max(len(row.ids) for row in rows)
    starts = [(n + 1) * length - len(row.ids) if left else n * length for n, row in enumerate(rows)]
    return _rows_of(rows, starts, (len(rows), length), special, device)


def packed_rows(rows: Sequence[TokenRow], special: SpecialTokens, device: torch.device) -> Rows:
    """Return rows laid end to end in one sequence."""
    bounds = [0, *accumulate(len(row.ids) for row in rows)]
    return _rows_of(rows, bounds[:-1], (1, bounds[-1]), special, device, bounds)


def _rows_of(
    rows: Sequence[TokenRow],
    starts: Sequence[int],
    shape: tuple[int, int],
    special: SpecialTokens,
    device: torch.device,
    bounds: Sequence[int] | None = None,
) -> Rows:
    """Return rows of which each begins at one of the places `starts`; packed ones where `bounds` are given."""
    ids = torch.full((shape[0] * shape[1],), special.pad)
    positions = torch.zeros_like(ids)
    mask = torch.zeros_like(ids)
    for start, row in zip(starts, rows, strict=True):
        end = start + len(row.ids)
        ids[start:end] = torch.tensor(row.ids)
        positions[start:end] = torch.arange(len(row.ids))
        mask[start:end] = 1

    def places(chosen: Callable[[TokenRow], list[bool]]) -> list[list[int]]:
        pairs = zip(starts, rows, strict=True)
        return [[start + n for n, yes in enumerate(chosen(row)) if yes] for start, row in pairs]

    contexts = places(lambda row: [token == special.context for token in row.ids])
    labelled = places(lambda row: [False, *(label != IGNORE for label in row.labels[1:])])  # the first is not predicted
    moved = _moved(
        {
            "ids": ids,
            "positions": positions,
            "attention": mask if bounds is None else torch.tensor(bounds),
            "contexts": _flat(contexts),
            "replaced": _flat(places(lambda row: row.replaced)),
            "segs": _flat(places(lambda row: [token == special.seg for token in row.ids])),
            "before_labels": _flat(labelled) - 1,
            "labels": _flat([[label for label in row.labels[1:] if label != IGNORE] for row in rows]),
            "row_of_label": _flat([[row] * len(of_row) for row, of_row in enumerate(labelled)]),
        },
        device,
    )
    attention = moved.pop("attention")
    lengths = tuple(len(row.ids) for row in rows)
    return Rows(
        names=[row.name for row in rows],
        ids=moved.pop("ids").view(shape),
        positions=moved.pop("positions").view(shape),
        attention=attention.view(shape) if bounds is None else RowLengths(lengths, attention.int()),
        contexts_per_row=[len(of_row) for of_row in contexts],
        **moved,
    )


def _flat(values: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([value for of_row in values for value in of_row], dtype=torch.int64)


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors (n,) int64 on a device; they move there as one, for which the host does not wait."""
    flat = to_device(torch.cat([*tensors.values()]), device)
    return dict(zip(tensors, flat.split([len(tensor) for tensor in tensors.values()]), strict=True))
