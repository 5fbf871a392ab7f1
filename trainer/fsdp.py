"""FSDP2 (Zhao et al. 2023): parameters in shares, one a process, whole only while a layer computes.

`accelerate launch --config_file trainer/launch/fsdp2.yaml` asks for it. What it changes for the rest of the trainer
is here: parameters become DTensors, each pass of a layer is a collective, and weights cannot be swapped by handing
others in, since a layer fetches its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from shards.errors import UserError
from trainer.config import Config

_ASKED = "ACCELERATE_USE_FSDP"
_WANTED = "trainer/launch/fsdp2.yaml"


def take_up(accelerator: Accelerator, config: Config) -> None:
    """Make `accelerator` shard as this trainer can, where the launcher asks for FSDP.

    Accelerate itself shards on accelerators alone; on CPUs it would fall back to DDP without a word.

    Raises:
        UserError: the launcher or the run asks for what does not go with it.
    """
    if os.environ.get(_ASKED, "").lower() != "true":
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        set_type(accelerator, DistributedType.FSDP)
    if accelerator.distributed_type != DistributedType.FSDP:
        return  # one process: there is nothing to share
    plugin = accelerator.state.fsdp_plugin
    unfit = {
        "fsdp_version 1": plugin.fsdp_version != 2,
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params": os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true",
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        "an fsdp_auto_wrap_policy by size": os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP",
        "fsdp_ignored_modules": plugin.ignored_modules is not None,
        "dynamo_backend": os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no",
    }
    if found := [name for name, present in unfit.items() if present]:
        raise UserError("not supported", where="accelerate's FSDP settings", met=", ".join(found), wanted=_WANTED)
    if config.project:
        do = "project=false, or DDP (trainer/launch/ddp.yaml)"
        raise UserError("gradients that lie in shares are not projected", where="project", met="FSDP", do=do)
    for where, met, only in (("optimizer", config.optimizer, "adamw"), ("compile", str(config.compile), "False")):
        if met != only:
            raise UserError("does not go with parameters in shares (FSDP)", where=where, met=met, wanted=only)
    # Weights stay what they are, and sums of gradients float32: autocast decides what is computed in bfloat16.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def set_type(accelerator: Accelerator, kind: DistributedType) -> None:
    """Make it `kind`, as Accelerate itself does on GPUs: its states are made anew from the one below them."""
    accelerator.state.distributed_type = kind
    PartialState._shared_state["distributed_type"] = kind


def is_shared(module: nn.Module) -> bool:
    """Whether the module's parameters lie in shares."""
    return isinstance(module, FSDPModule)


def whole(value: Tensor | float) -> Tensor:
    """All of a tensor, or a number as one. Where it lies in shares all processes have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor; of those in shares a copy on the CPU, where it is to `keep`. All processes have to ask."""
    found: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):  # in one order, whatever files they were read from
        if not isinstance(tensor, DTensor):
            found[name] = tensor
        elif (complete := tensor.full_tensor()) is not None and keep:
            found[name] = complete.cpu()
    return found


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its memory, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that each process has, in shares as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    device = own(like).device
    return distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)


def shared_out(module: nn.Module) -> nn.Module:
    """`module`, with every parameter in shares again: a forward leaves those of the outermost whole."""
    if is_shared(module):
        module.state_dict()  # its hooks do this
    return module


def any_process(said: bool, device: torch.device) -> bool:
    """Whether any process says so: all have to pass through the layers equally often."""
    flag = torch.tensor(float(said), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def lent(module: nn.Module, parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute with `others` in place of the module's `parameters` of the same names, in the middle of its forward."""
    kept = {name: own(parameter).detach().clone() for name, parameter in parameters.items()}
    _put(module, parameters, {name: own(other) for name, other in others.items()})
    try:
        yield
    finally:
        _put(module, parameters, kept)


@torch.no_grad()
def _put(module: nn.Module, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    shared_out(module)
    for name, parameter in parameters.items():
        own(parameter).copy_(values[name])
    assert isinstance(module, FSDPModule)
    module.unshard()
    torch.clear_autocast_cache()  # it may hold what was whole before
