"""Statistics of captions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.objectives.language import caption_statistics


def test_statistics_of_captions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    statistics = caption_statistics([[1, 2, 1, 2], [3]], [True, False], logits)
    assert statistics["caption_tokens"] == 2.5 and statistics["at_limit"] == 0.5
    assert statistics["distinct_2"].item() == pytest.approx(2 / 3)  # (1, 2) twice, (2, 1) once
    assert statistics["entropy"].item() == pytest.approx(math.log(4) / 2, rel=1e-6)
    assert caption_statistics([[5]], [True], logits)["distinct_2"] == 1
