"""Context managers: evaluation mode, and autocast to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in evaluation mode and back in the mode it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Compute in bfloat16 where `mixed_precision` is "bf16"; weights keep their dtype.

    Accelerate does this for DDP alone: FSDP and DeepSpeed would cast weights and results.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
