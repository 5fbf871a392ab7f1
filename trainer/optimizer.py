"""The optimiser of a run: AdamW over the parts that train, each part at its own rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shards.extras import extra
from trainer.config import Config
from trainer.model.sa2va import Sa2VA
from trainer.model.trainable import by_part

_CODES = "#codes"
_SCALE = "#scale"


def make_optimizer(model: Sa2VA, config: Config) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019); `adamw8bit` keeps moments in 8 bits (Dettmers et al. 2022).

    Each part has one group of parameters with weight decay and one of those without, as far as it has such.

    Raises:
        UserError: `adamw8bit` needs torchao, which is not installed.
    """
    groups: list[dict[str, Any]] = [
        {"params": group, "lr": config.rates.get(part, config.lr), "weight_decay": decay}
        for part, parameters in by_part(model, config.trainable).items()
        for group, decay in _by_decay(parameters, config)
        if group
    ]
    options: dict[str, Any] = {"betas": (config.betas[0], config.betas[1]), "eps": config.eps, "lr": config.lr}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    with extra("deploy", f"optimizer={config.optimizer}", instead="optimizer=adamw"):
        from torchao.optim import AdamW8bit
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return optimizer


def _by_decay(parameters: list[nn.Parameter], config: Config) -> list[tuple[list[nn.Parameter], float]]:
    """Divide `parameters` into two groups, each with its weight decay.

    Biases, the weights of norms and scales of layers have one dimension, sharded (FSDP2) or not; all others have more.
    """
    if config.weight_decay_on == "all":
        return [(parameters, config.weight_decay)]
    decaying, others = ([p for p in parameters if (p.ndim > 1) == decays] for decays in (True, False))
    return [(decaying, config.weight_decay), (others, 0.0)]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of the optimiser."""
    if isinstance(group["lr"], Tensor):  # torchao's compiled step needs the same tensor
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def to_stored(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return moments by name as plain tensors: codes and scales for those in 8 bits (the table of values is fixed)."""
    found: dict[str, Tensor] = {}
    for name, tensor in moments.items():
        coded: Any = tensor
        if hasattr(coded, "codes"):
            found |= {f"{name}{_CODES}": coded.codes, f"{name}{_SCALE}": coded.scale}
        else:
            found[name] = tensor
    return found


def from_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moments that `to_stored` was given."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((_CODES, _SCALE))}
    for stored, codes in tensors.items():
        name = stored.removesuffix(_CODES)
        if name == stored or (scale := tensors.get(name + _SCALE)) is None:
            continue
        from torchao.optim.subclass_8bit import OptimState8bit

        block = codes.numel() // scale.numel()
        moment = OptimState8bit.zeros(codes.shape, not name.endswith("_sq"), block, codes.device, torch.float32)
        moment.codes.copy_(codes)
        moment.scale.copy_(scale)
        found[name] = moment
    return found
