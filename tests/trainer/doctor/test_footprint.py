"""Sizes of a run's model, compared with the loaded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.config import load_config
from trainer.doctor.footprint import measure_footprint
from trainer.model.sa2va import build
from trainer.model.trainable import set_trainable
from trainer.released.folder import save_model
from trainer.trained import base_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_footprint_counts_what_loading_gives(tmp_path: Path, dtype: str):
    """From the headers of a released folder, and from a preset."""
    torch.manual_seed(0)
    save_model(build("tiny"), tmp_path / "released")
    for source in (f"model.path={tmp_path / 'released'}", "model.preset=tiny"):
        config = load_config([source, f"model.dtype={dtype}", "lora.r=4"])
        base = base_model(config.model, "cpu")
        model = base.model
        sizes = set_trainable(model, config.trainable, **vars(config.lora))
        footprint = measure_footprint(config)
        assert footprint.trainable == sizes
        assert footprint.parameters == sum(p.numel() for p in model.parameters())
        assert sum(footprint.frozen_bytes.values()) == sum(p.nbytes for p in model.parameters() if not p.requires_grad)
        assert footprint.frozen_bytes.keys() == {dtype}
        assert footprint.trainable_bytes == 4 * sum(sizes.values())
        assert bool(footprint.new_bytes) == bool(base.new)
        one = sum(footprint.memory(1).values())
        two = sum(footprint.memory(2).values())
        assert sum(footprint.memory(1, project=True).values()) == one + 2 * footprint.trainable_bytes
        assert one == sum(footprint.frozen_bytes.values()) + 20 * sum(sizes.values()) == two - footprint.trainable_bytes
