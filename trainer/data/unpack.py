"""Unpacking of masks on the device: moving packed bits there takes an eighth of the bytes of bool."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def unpacked(masks: Tensor) -> Tensor:
    """Unpack (M, S, S // 8) uint8 to (M, S, S) bool; return bool unchanged.

    A byte holds eight pixels, the first in the highest bit.
    """
    if masks.dtype != torch.uint8:
        return masks
    pixels = _table(masks.device).index_select(0, masks.flatten().int())
    return pixels.view(torch.bool).view(*masks.shape[:-1], 8 * masks.shape[-1])


@lru_cache
def _table(device: torch.device) -> Tensor:
    """The eight pixels of each byte value, one byte per pixel, as one int64: (256,)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(bits.view(np.int64)[:, 0]).to(device)
