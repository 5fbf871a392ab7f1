"""torch.compile of the layers of the large parts: each kind of layer is compiled once, and serves all of its kind."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from trainer.model.sa2va import Sa2VA

BACKEND = "inductor"


def compile_layers(model: Sa2VA) -> int:
    """Compile the layers of vision tower, SAM 2's image encoder and language model in place; how many there are.

    Names of parameters stay as they are. Lengths of rows vary, so the first other length compiles once more, for any.
    """
    layers = [module for module in model.modules() if type(module).__name__ in model.layer_names]
    for layer in layers:
        layer.compile(backend=BACKEND)
    return len(layers)


def uncompiled(model: Sa2VA) -> AbstractContextManager[object]:
    """Run the layers as they were written: a growing cache of keys and values would compile each layer anew."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
