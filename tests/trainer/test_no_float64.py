"""Training, evaluation and prediction compute without float64, which Apple's GPUs do not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference.predictor import Predictor
from trainer.data.loader import Loader, LoaderOptions
from trainer.measure.evaluation import evaluate
from trainer.objectives import load_objective
from trainer.released.loaded import LoadedModel


class NoFloat64(TorchDispatchMode):
    """Raises where an operation returns float64."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{func} returns float64")
        return result


def test_the_mode_refuses_float64():
    for make in (lambda: torch.zeros(1).double(), lambda: torch.zeros(1, dtype=torch.float64)):
        with pytest.raises(TypeError, match="returns float64"), NoFloat64():
            make()


def test_evaluation(make_loop, config, sav_set: Path):
    """Steps: see test_no_resize.py."""
    fields = load_objective("dual").panel_fields()
    options = LoaderOptions(fields=fields, batch_size=1, seed=0, part="holdout", holdout=0.3, limit=1)
    loader = Loader([str(sav_set)], options)
    config.max_caption_tokens = 1
    loop = make_loop(config)
    with NoFloat64():
        evaluate(Accelerator(cpu=True), loop, loader, "dual", config)


def test_prediction(model):
    photo = np.zeros((40, 60, 3), np.uint8)
    predictor = Predictor(LoadedModel(model), max_new_tokens=2)
    with NoFloat64():
        predictor.segment([photo], ["Where is it?"])
        predictor.describe([photo], [np.ones((1, 40, 60), bool)])
        for _ in predictor.track([photo] * 2, "Where is it?").masks:
            pass
