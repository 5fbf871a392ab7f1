"""Unpacking of masks on the device."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.unpack import unpacked


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_unpacked_masks_equal_those_of_numpy(seed, count):
    packed = np.random.default_rng(seed).integers(0, 256, (count, 8, 4), np.uint8)
    result = unpacked(torch.from_numpy(packed))
    assert result.dtype == torch.bool and np.array_equal(result.numpy(), np.unpackbits(packed, axis=2))
    assert unpacked(result) is result
