"""Memory of batches."""

import numpy as np
import pytest

from shards.errors import UserError
from trainer.data.decoding import Buffers


def test_buffers_grow_and_keep_the_memory_that_is_large_enough():
    buffers = Buffers({"a": ((2,), np.dtype(np.uint8)), "b": ((3, 4), np.dtype(np.float32))}, False, 3)
    buffers.make_room({"a": 8, "b": 0})
    first = buffers.tensors["a"]
    assert first.shape == (8, 2) and buffers.tensors["b"].shape == (0, 3, 4)
    buffers.make_room({"a": 5, "b": 2})
    assert buffers.tensors["a"] is first and buffers.tensors["b"].shape == (2, 3, 4)
    buffers.make_room({"a": 9, "b": 1})  # by a quarter at least, so that memory is rarely allocated again
    assert buffers.tensors["a"].shape == (10, 2)
    buffers.arrays["a"][9, 1] = 7
    assert buffers.tensors["a"][9, 1] == 7


def test_batches_that_do_not_fit_the_memory_are_refused():
    buffers = Buffers({"a": ((1 << 40,), np.dtype(np.uint8))}, False, 4)
    with pytest.raises(UserError, match=r"batches take more memory than there is; met 43,980\.5 GB"):
        buffers.make_room({"a": 10})
