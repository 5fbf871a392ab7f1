"""Loaders and batches as tests need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import PairBatch
from trainer.data.loader import Loader, LoaderOptions


def make_loader(paths: Sequence[str | Path], **options: Any) -> Loader:
    return Loader([str(path) for path in paths], LoaderOptions(**options))


def with_frame(batch: PairBatch, number: int, **fields: Tensor | None) -> PairBatch:
    """The batch with other fields of frame `number`, counted from 1."""
    frames = [*batch.frames]
    frames[number - 1] = replace(frames[number - 1], **fields)
    return replace(batch, frames=(frames[0], frames[1]))


def one_sample(batch: PairBatch, i: int = 0) -> PairBatch:
    """Return a batch of sample `i` alone; each sample of `batch` has one object."""
    part = slice(i, i + 1)
    first, second = (
        replace(frame, **{name: tensor[part] for name, tensor in frame.tensors().items()}) for frame in batch.frames
    )
    lists = ("keys", "texts", "objects", "meta", "frame_numbers", "turns", "copies")
    return replace(
        batch,
        frames=(first, second),
        image_of_object=torch.tensor([0]),
        paired=batch.paired[part],
        **{name: getattr(batch, name)[part] for name in lists},
    )


def tensors_of(batch: PairBatch) -> dict[str, Tensor]:
    """All tensors of a batch; those of frames by names such as pixel_values1."""
    named = {f"{name}{k}": t for k, frame in enumerate(batch.frames, 1) for name, t in frame.tensors().items()}
    return named | {"image_of_object": batch.image_of_object, "paired": batch.paired}
