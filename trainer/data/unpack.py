"""Masks where they are used: a byte a pixel on the device, after an eighth of the bytes has been moved there."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def unpacked(masks: Tensor) -> Tensor:
    """(M, S, S // 8) uint8, eight pixels a byte, the first in the highest bit, to (M, S, S) bool.

    Others stay as they are.
    """
    if masks.dtype != torch.uint8:
        return masks
    pixels = _table(masks.device).index_select(0, masks.flatten().int())
    return pixels.view(torch.bool).view(*masks.shape[:-1], 8 * masks.shape[-1])


@lru_cache
def _table(device: torch.device) -> Tensor:
    """The eight pixels of each byte, a byte each, as one number: (256,)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(bits.view(np.int64)[:, 0]).to(device)
