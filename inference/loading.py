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
    """Load a model for prediction: frozen, in evaluation mode.

    Args:
        folder: a folder in the released layout, the folder of a run, or a checkpoint, whose adapters are merged.
        device: PyTorch's name of the device; None takes a GPU if there is one.
        dtype: "float32" or "bfloat16"; None takes bfloat16 on a GPU that computes in it, else float32.

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
        return load_quantised(path, place)  # its other weights keep the folder's dtype
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
