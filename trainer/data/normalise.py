"""Normalisation where the pictures are used: on the device, after a quarter of the bytes has been moved there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from shards.codec import normalise


def normalised(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, S, S) uint8 to the float32 values of `shards.codec.normalise`, bit for bit; others stay as they are.

    The values are looked up: a GPU divides by a scalar by multiplying with its reciprocal, which rounds differently.
    """
    if pixel_values.dtype != torch.uint8:
        return pixel_values
    table = _table(tuple(mean), tuple(std), pixel_values.device)
    channel = torch.arange(0, len(table), 256, dtype=torch.int32, device=pixel_values.device)
    return table.index_select(0, (pixel_values + channel[:, None, None]).flatten()).view(pixel_values.shape)


@lru_cache
def _table(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """All values, (3 * 256,), a channel after the other."""
    values = np.arange(256, dtype=np.uint8)[None, None].repeat(3, axis=0)
    return torch.from_numpy(normalise(values, mean, std).reshape(-1)).to(device)
