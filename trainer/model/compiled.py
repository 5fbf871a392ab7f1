"""torch.compile for the layers of the large parts. Each class of layers is compiled once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from trainer.model.sa2va import Sa2VA

BACKEND = "inductor"


def compile_layers(model: Sa2VA) -> int:
    """Compile the layers of vision tower, SAM 2's image encoder and language model in place; return their number.

    Names of parameters do not change. A second length of rows compiles once more, then for any length.
    """
    layers = [module for module in model.modules() if type(module).__name__ in model.layer_names]
    for layer in layers:
        layer.compile(backend=BACKEND)
    return len(layers)


def uncompiled(model: Sa2VA) -> AbstractContextManager[object]:
    """Run the layers as they were written: a growing cache of keys and values would compile each layer anew."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
