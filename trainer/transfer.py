"""Copies of small tensors from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def page_locks(device: torch.device) -> bool:
    """Whether copies to `device` from page-locked memory let the host go on."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; the host does not wait for the copy where the device can do without.

    PyTorch gives the page-locked memory that it makes here to others only when the copy is over.
    """
    if tensor.device.type != "cpu" or not page_locks(device):
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()).to(device, non_blocking=True)
