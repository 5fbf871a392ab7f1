"""LoRA merged into the weights it adapts."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from trainer.model.sa2va import Sa2VA


@torch.no_grad()
def merge_adapters(model: Sa2VA) -> int:
    """Replace each adapted layer by its base layer with W + scale * B @ A; how many there were.

    The sum is taken in float32 and rounded once to the type of W.
    """
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
