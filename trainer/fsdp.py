"""FSDP2 (Zhao et al. 2023): each process holds a shard of every parameter, and gathers a layer while it computes.

`accelerate launch --config_file trainer/launch/fsdp2.yaml` asks for it. What it changes for the rest of the trainer
is here: parameters become DTensors, each pass through a layer is a collective, and other weights cannot be passed to
a layer, since it gathers its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
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

_REQUEST = "ACCELERATE_USE_FSDP"
_SUPPORTED = "trainer/launch/fsdp2.yaml"


def set_up(accelerator: Accelerator, config: Config) -> None:
    """Make `accelerator` shard as this trainer supports it, where the launcher asks for FSDP.

    Accelerate itself shards on accelerators alone; on CPUs it would silently fall back to DDP.

    Raises:
        UserError: the launcher or the run asks for what FSDP2 does not support here.
    """
    if os.environ.get(_REQUEST, "").lower() != "true":
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        set_distributed_type(accelerator, DistributedType.FSDP)
    if accelerator.distributed_type != DistributedType.FSDP:
        return  # one process: there is nothing to shard
    plugin = accelerator.state.fsdp_plugin
    unsupported = {
        "fsdp_version 1": plugin.fsdp_version != 2,
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params": os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true",
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        "an fsdp_auto_wrap_policy by size": os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP",
        "fsdp_ignored_modules": plugin.ignored_modules is not None,
        "dynamo_backend": os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no",
    }
    if found := [name for name, present in unsupported.items() if present]:
        raise UserError("not supported", where="accelerate's FSDP settings", met=", ".join(found), wanted=_SUPPORTED)
    if config.project:
        do = "project=false, or DDP (trainer/launch/ddp.yaml)"
        raise UserError("sharded gradients are not projected", where="project", met="FSDP", do=do)
    choices = (("optimizer", config.optimizer, "adamw"), ("compile", str(config.compile), "False"))
    for key, value, supported in choices:
        if value != supported:
            raise UserError("does not go with sharded parameters (FSDP)", where=key, met=value, wanted=supported)
    # Weights keep their dtype, and gradients are summed in float32: autocast decides what is computed in bfloat16.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def set_distributed_type(accelerator: Accelerator, distributed_type: DistributedType) -> None:
    """Set the type where Accelerate itself does on GPUs: it builds its other states anew from `PartialState`."""
    accelerator.state.distributed_type = distributed_type
    PartialState._shared_state["distributed_type"] = distributed_type


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's parameters are sharded over the processes."""
    return isinstance(module, FSDPModule)


def full_tensor(value: Tensor | float) -> Tensor:
    """Return a tensor gathered from all processes, or a number as a tensor. All processes have to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value)


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, contiguous, in the host's memory."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def full_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return all tensors: sharded ones gathered as copies on the CPU, others as they are.

    All processes have to call this; one that does not `keep` the copies gets the others alone.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):  # in one order, whatever files they were read from
        if not isinstance(tensor, DTensor):
            found[name] = tensor
        elif (gathered := tensor.full_tensor()) is not None and keep:
            found[name] = gathered.cpu()
    return found


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: its memory, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which each process has, as `like` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    device = local_shard(like).device
    return distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)


def resharded(module: nn.Module) -> nn.Module:
    """Return `module` with every parameter sharded: a forward leaves those of the outermost module gathered."""
    if is_sharded(module):
        module.state_dict()  # its hooks reshard
    return module


@contextmanager
def whole(module: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Let each process hold all parameters, and run the layers by itself; nothing is done where none are sharded.

    All processes have to call this, in the module's forward. Nothing may be trained meanwhile.
    """
    if not is_sharded(module):
        yield
        return
    layers = [layer for layer in module.modules() if isinstance(layer, FSDPModule)]
    assert isinstance(module, FSDPModule)
    module.set_reshard_after_forward(False)
    for layer in layers:
        layer.unshard()
    try:
        yield
    finally:
        module.set_reshard_after_forward(accelerator.state.fsdp_plugin.reshard_after_forward)
        for layer in layers:
            layer.reshard()


def any_process_of(module: nn.Module) -> Callable[[bool], bool]:
    """Return a function that says whether its argument is true on any process; `bool` where they need not agree.

    All processes must run sharded layers equally often, so what one process needs the others do too. DeepSpeed adds up
    gradients in the order in which a backward pass has them ready, so all must run the same layers there as well.
    """
    in_step = PartialState._shared_state.get("distributed_type") == DistributedType.DEEPSPEED
    if not in_step and not any(is_sharded(layer) for layer in module.modules()):
        return bool
    device = next(module.parameters()).device

    def any_process(value: bool) -> bool:
        flag = torch.tensor(float(value), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    return any_process


@contextmanager
def swapped_in(module: nn.Module, parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute with `others` in place of the module's `parameters` of the same names, in the middle of its forward."""
    kept = {name: local_shard(parameter).detach().clone() for name, parameter in parameters.items()}
    _overwrite(module, parameters, {name: local_shard(other) for name, other in others.items()})
    try:
        yield
    finally:
        _overwrite(module, parameters, kept)


@torch.no_grad()
def _overwrite(module: nn.Module, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    resharded(module)
    for name, parameter in parameters.items():
        local_shard(parameter).copy_(values[name])
    assert isinstance(module, FSDPModule)
    module.unshard()
    torch.clear_autocast_cache()  # it may hold casts of the weights before
