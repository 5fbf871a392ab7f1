"""Normalisation on the device."""

import numpy as np
import torch

from shards import codec
from trainer.data.normalise import normalised
from trainer.model.grounding import MEAN, STD


def test_normalised_values_equal_those_of_the_reader():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3, 1).transpose(1, 0, 2).copy()
    result = normalised(torch.from_numpy(values)[None], MEAN, STD)
    assert result.dtype == torch.float32 and np.array_equal(result[0].numpy(), codec.normalise(values, MEAN, STD))
    assert normalised(result, MEAN, STD) is result
