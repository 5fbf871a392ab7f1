"""Means of blocks."""

import numpy as np
import pytest

from shards import compiled
from shards.blocks import block_means


@pytest.mark.parametrize(("size", "side"), [(448, 2), (1024, 4), (450, 4), (100, 7), (64, 1), (257, 257)])
def test_means_of_whole_blocks_are_rounded_half_up(size, side):
    picture = np.random.default_rng(side).integers(0, 256, (3, size, size), np.uint8)
    picture[:, : size // 2] |= 0xE0  # bright blocks
    count = size // side
    blocks = picture[:, : count * side, : count * side].reshape(3, count, side, count, side).astype(np.float64)
    expected = np.floor(blocks.mean(axis=(2, 4)) + 0.5).transpose(1, 2, 0)
    assert np.array_equal(block_means(picture, side), expected)
    with compiled.python_alone():
        assert np.array_equal(block_means(picture, side), expected)
