"""The one place that decides on device and precision of a model that predicts."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.quantise import is_int8_folder, load_quantised
from shards.errors import UserError
from trainer.export import CHECKPOINT, load_any
from trainer.released.folder import load_model
from trainer.released.loaded import LoadedModel
from trainer.trained import ORIGIN

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(folder: str | Path, device: str | None = None, dtype: str | None = None) -> LoadedModel:
    """Load the model in `folder`, ready for `inference.predictor.Predictor`: frozen, in evaluation mode.

    Args:
        folder: in the layout of the released ones; or a run's, or a checkpoint of one, whose adapters are merged.
        device: as PyTorch names it; a GPU where None and there is one.
        dtype: "float32" or "bfloat16"; where None bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: no such device or dtype, or no such model in `folder`.
    """
    place = _device(device)
    if dtype is None:
        fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if fast else "float32"
    if dtype not in DTYPES:
        raise UserError("unknown dtype", met=dtype, wanted=" or ".join(DTYPES))
    path = Path(folder)
    if any((run / ORIGIN).exists() for run in (path, path / CHECKPOINT)):
        loaded, _ = load_any(path, DTYPES[dtype])
        loaded.model.to(place)
        return loaded
    if (path / "config.json").exists() and is_int8_folder(path):
        return load_quantised(path, place)  # its other weights are as the folder has them
    return load_model(folder, dtype=DTYPES[dtype], device=place)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError("no such device", met=name, wanted="cpu or cuda", do=str(error).splitlines()[0]) from None
    return device
