"""A batch: samples with the objects that were chosen of them, as tensors and what belongs to these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from shards.recipe import Recipe
from trainer.data.normalise import normalised
from trainer.data.unpack import unpacked

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

    def to(self, device: torch.device, recipe: Recipe) -> Frame:
        """See `Batch.to`."""
        named = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        if "pixel_values" in named:
            named["pixel_values"] = normalised(named["pixel_values"], recipe.mean, recipe.std)
        if "masks" in named:
            named["masks"] = unpacked(named["masks"])
        return Frame(**named)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that were asked for, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class Batch:
    """B samples with M chosen objects in all; every sample has at least one."""

    frames: tuple[Frame, Frame]
    """Frame 1 and frame 2 of each sample."""
    image_of_object: Tensor
    """(M,) int64 in 0..B - 1: the sample that each object belongs to."""
    paired: Tensor
    """(B,) bool: whether frames 1 and 2 are different ones. Where they are one, frame 2's `pixel_values` are not filled
    if frame 1's are there."""
    keys: list[str]
    """B keys of samples."""
    texts: Sequence[list[str]]
    """M lists: the texts of each object that say something; none for one without text."""
    objects: list[int]
    """M numbers of objects in their samples, from 0."""
    recipe: Recipe
    """How the tensors were made."""
    meta: Sequence[Mapping[str, Any]]
    """B samples' JSON."""
    frame_numbers: list[tuple[int, int]]
    """B pairs: which of a sample's frames, from 1, are frames 1 and 2."""
    turns: list[int]
    """M counts: how often each object was taken before, in this epoch and those before it."""
    copies: list[int]
    """B counts: how often the sample came before in this epoch, where sources are repeated."""
    position: Position = field(default_factory=lambda: {"epoch": 0, "samples": 0})
    """What all processes together have consumed once this batch is trained on."""
    step_objects: int = 0
    """Objects of all batches that this process has in the optimiser step, this batch's included."""
    is_padding: bool = False
    """Whether the batch is another process's once more, so that each process has as many: it must not be counted."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, `pixel_values` normalised and `masks` unpacked to a byte per pixel.

        Copies from page-locked memory do not block.
        """
        first, second = (frame.to(device, self.recipe) for frame in self.frames)
        return replace(
            self,
            frames=(first, second),
            image_of_object=self.image_of_object.to(device, non_blocking=True),
            paired=self.paired.to(device, non_blocking=True),
        )


def required(tensor: Tensor | None) -> Tensor:
    """Return a field of a frame; raises `ValueError` for one that was not asked for."""
    if tensor is None:
        raise ValueError("the batch lacks a field that is read; ask the loader for it")
    return tensor
