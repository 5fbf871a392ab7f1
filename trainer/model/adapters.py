"""LoRA adapters: put into the language model, and merged into the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.model.sa2va import Sa2VA


def has_adapters(module: nn.Module) -> bool:
    """Whether there are LoRA layers in `module`."""
    return any(".lora_A." in name for name, _ in module.named_parameters())


@torch.no_grad()
def merge_adapters(model: Sa2VA) -> int:
    """Replace each adapted layer by its base layer with W + scale * B @ A; return the number of layers.

    The sum is taken in float32 and rounded once to the type of W.
    """
    if not has_adapters(model):
        return 0
    from peft.tuners.lora import LoraLayer  # imports for seconds

    found: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
    for name, layer in found:
        base = layer.get_base_layer()
        weight = base.weight.float()
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).float()
        base.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    return len(found)
