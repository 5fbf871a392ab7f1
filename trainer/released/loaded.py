"""A model with what is known about its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shards.recipe import Recipe
from trainer.model.sa2va import Sa2VA
from trainer.trained_on import TrainedOn


@dataclass(frozen=True)
class ModelInfo:
    """Where a model's weights came from."""

    folder: Path | None = None
    """The folder that held the weights; its tokenizer files and code are copied when the model is saved."""
    dtype: torch.dtype | None = None
    """Data type of the token table in the file."""
    recipe: Recipe | None = None
    """How the tensors of the training were made; None where unknown."""
    trained_on: TrainedOn | None = None
    """The samples of all trainings; None where unknown."""


UNKNOWN = ModelInfo()
"""What is known of weights that came from no file."""


@dataclass(frozen=True)
class LoadedModel:
    """What a loader returns."""

    model: Sa2VA
    info: ModelInfo = UNKNOWN
    new: frozenset[str] = frozenset()
    """Names in `state_dict` of the tensors with random values, which no file held."""
