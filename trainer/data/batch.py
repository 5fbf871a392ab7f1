"""A batch: samples with the objects that were chosen of them, as tensors and what belongs to these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from shards.recipe import Recipe
from trainer.conversations.conversation import Conversation
from trainer.data.normalise import normalised
from trainer.data.unpack import unpacked
from trainer.model.rows import TokenRow, count_labels
from trainer.transfer import to_device

Position = dict[str, int]
"""{"epoch": int, "samples": int}: so many samples of the epoch's order over all processes are consumed."""


@dataclass(frozen=True)
class Frame:
    """One frame of each of B samples, with M objects in all. A field that was not asked for is None."""

    pixel_values: Tensor | None = None
    """(B, 3, 448, 448) float32, normalised with the recipe's mean and standard deviation; before `Batch.to` it may be
    uint8 in 0..255."""
    g_pixel_values: Tensor | None = None
    """(B, 3, 1024, 1024) uint8 in 0..255."""
    prompt_masks: Tensor | None = None
    """(M, 16, 16) bool: the cells of each object's region."""
    masks: Tensor | None = None
    """(M, 1024, 1024) bool; before `Batch.to` it may be (M, 1024, 128) uint8, eight pixels per byte, the first in the
    highest bit."""

    def on(self, device: torch.device) -> Frame:
        """See `Batch.on`."""
        return Frame(**{name: to_device(tensor, device) for name, tensor in self.tensors().items()})

    def finished(self, recipe: Recipe) -> Frame:
        """Return the frame with `pixel_values` normalised and `masks` unpacked to a byte per pixel."""
        named = self.tensors()
        if "pixel_values" in named:
            named["pixel_values"] = normalised(named["pixel_values"], recipe.mean, recipe.std)
        if "masks" in named:
            named["masks"] = unpacked(named["masks"])
        return Frame(**named)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that were asked for, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples: what batches of every kind have."""

    keys: list[str]
    """B keys of samples."""
    recipe: Recipe
    """How the tensors were made."""
    meta: Sequence[Mapping[str, Any]]
    """B samples' JSON."""
    copies: list[int]
    """B counts: how often the sample came before in this epoch, where sources are repeated."""
    position: Position = field(default_factory=lambda: {"epoch": 0, "samples": 0})
    """What all processes together have consumed once this batch is trained on."""
    step_counts: Mapping[str, int] = field(default_factory=dict)
    """`counts` of all batches that this process has in the optimiser step, this batch's included."""
    is_padding: bool = False
    """Whether the batch is another process's once more, so that each process has as many: it must not be counted."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of units that losses are means over, by name."""
        raise NotImplementedError

    def on(self, device: torch.device) -> Self:
        """Return the batch with pictures, masks and cells on `device`, as they are stored.

        Copies from page-locked memory do not block. Indices stay on the host, which computes with them.
        """
        raise NotImplementedError

    def to(self, device: torch.device) -> Self:
        """Return `on`'s batch with `pixel_values` normalised and `masks` unpacked to a byte per pixel."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """The tensors that `on` moves."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """B samples with M chosen objects in all and two frames each; every sample has at least one object."""

    frames: tuple[Frame, Frame]
    """Frame 1 and frame 2 of each sample."""
    image_of_object: Tensor
    """(M,) int64 in 0..B - 1: the sample that each object belongs to."""
    paired: Tensor
    """(B,) bool: whether frames 1 and 2 are different ones. Where they are one, frame 2's `pixel_values` are not filled
    if frame 1's are there."""
    texts: Sequence[list[str]]
    """M lists: the texts of each object that say something; none for one without text."""
    objects: list[int]
    """M numbers of objects in their samples, from 0."""
    frame_numbers: list[tuple[int, int]]
    """B pairs: which of a sample's frames, from 1, are frames 1 and 2."""
    turns: list[int]
    """M counts: how often each object was taken before, in this epoch and those before it."""

    @property
    def counts(self) -> dict[str, int]:
        return {"objects": len(self.image_of_object)}

    def on(self, device: torch.device) -> PairBatch:
        first, second = (frame.on(device) for frame in self.frames)
        return replace(self, frames=(first, second))

    def to(self, device: torch.device) -> PairBatch:
        first, second = (frame.on(device).finished(self.recipe) for frame in self.frames)
        return replace(self, frames=(first, second))

    def tensors(self) -> list[Tensor]:
        return [tensor for frame in self.frames for tensor in frame.tensors().values()]


@dataclass(frozen=True, kw_only=True)
class ConversationBatch(Batch):
    """B samples with R conversations, each of which is one row of the language model.

    P pictures are shown to the language model, and masks are predicted in G pictures. S is the number of `[SEG]` in all
    rows, in the order of the rows and of their places. There are N masks: one per `[SEG]` and frame of its row. R may
    be 0: where nothing of the samples could be asked.
    """

    conversations: Sequence[Conversation]
    """R."""
    rows: Sequence[TokenRow]
    """R."""
    sample_of_row: list[int]
    """R numbers in 0..B - 1."""
    pixel_values: Tensor | None
    """(P, 3, 448, 448), like `Frame.pixel_values`; None where P is 0."""
    image_of_row: Tensor
    """(R, K) int64 in 0..P - 1: the pictures of each row in the order of their places, -1 after the last. K is the
    largest number of pictures of a row, at least 1."""
    regions: Tensor
    """(R, Q, 16, 16) bool: the cells of the regions of each row, in its last picture; no cell after a row's last
    region. Q may be 0."""
    g_pixel_values: Tensor | None
    """(G, 3, 1024, 1024) uint8: one per frame of each row with a `[SEG]`; None where G is 0."""
    masks: Tensor | None
    """(N, 1024, 1024) bool, like `Frame.masks`, by row, then by frame, then by `[SEG]`; None where N is 0."""
    seg_of_mask: Tensor
    """(N,) int64 in 0..S - 1: the `[SEG]` from which each mask is predicted."""
    picture_of_mask: Tensor
    """(N,) int64 in 0..G - 1, never falling: the picture in which it is predicted."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts of what the conversations ask for and of what was left out, by name."""

    @property
    def counts(self) -> dict[str, int]:
        """`rows`, `tokens` that have a label, `masks` (N), and `frames` with a mask (G)."""
        return {
            "rows": len(self.rows),
            "tokens": sum(map(count_labels, self.rows)),
            "masks": len(self.seg_of_mask),
            "frames": 0 if self.g_pixel_values is None else len(self.g_pixel_values),
        }

    def on(self, device: torch.device) -> ConversationBatch:
        return self._with(self._frame().on(device))

    def to(self, device: torch.device) -> ConversationBatch:
        return self._with(self._frame().on(device).finished(self.recipe))

    def tensors(self) -> list[Tensor]:
        return [*self._frame().tensors().values()]

    def _frame(self) -> Frame:
        return Frame(pixel_values=self.pixel_values, g_pixel_values=self.g_pixel_values, masks=self.masks)

    def _with(self, frame: Frame) -> ConversationBatch:
        return replace(self, pixel_values=frame.pixel_values, g_pixel_values=frame.g_pixel_values, masks=frame.masks)


def required(tensor: Tensor | None) -> Tensor:
    """Return a field of a frame; raises `ValueError` for one that was not asked for."""
    if tensor is None:
        raise ValueError("the batch lacks a field that is read; ask the loader for it")
    return tensor
