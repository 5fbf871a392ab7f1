"""A tiny model that generates `[SEG]` now and then, and photographs."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch

from inference.predictor import Predictor
from tests.models import composed_once  # noqa: F401 (a fixture)
from trainer.model.sa2va import Sa2VA, build
from trainer.released.loaded import LoadedModel


@pytest.fixture(scope="session")
def talker() -> Sa2VA:
    """A tiny model in evaluation mode with random weights that generates `[SEG]` often. Not to be changed."""
    torch.manual_seed(0)
    model = build("tiny").eval().requires_grad_(False)
    head = model.language_model.lm_head.weight
    prompts = model.prompts
    rows = prompts.padded([prompts.ask("x", "Please segment it.")], model.device)
    visual_tokens = torch.randn(1, 256, model.mlp1[0].normalized_shape[0])
    states = model.run_language_model(
        model.embed_rows(rows, visual_tokens, torch.tensor([0])), rows.attention, rows.positions
    )
    usual = states[0, -20:].mean(0)
    head[prompts.seg] = 2 * head[prompts.seg] + 0.03 * usual
    return model


@pytest.fixture(scope="session")
def predictor(talker: Sa2VA) -> Predictor:
    return Predictor(LoadedModel(talker), max_new_tokens=4)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Real photographs of three sizes, (H, W, 3) uint8."""
    return [skimage.data.chelsea(), skimage.data.astronaut()[:, 100:400].copy(), skimage.data.coffee()[:200].copy()]
