"""DeepSpeed's ZeRO-2 (Rajbhandari et al. 2020): gradients and moments sharded, full weights on every process.

`accelerate launch --config_file trainer/launch/zero2.yaml` asks for it. DeepSpeed averages, clips and steps inside
of backward, and keeps the moments of flattened shards. It skips a step whose gradient is not finite.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor

from shards.errors import UserError
from trainer.config import Config
from trainer.fsdp import set_distributed_type
from trainer.objectives.backward import accumulation_steps
from trainer.objectives.step import Step

_SUPPORTED = "trainer/launch/zero2.yaml"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def is_requested() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def set_up(accelerator: Accelerator, config: Config) -> None:
    """Set DeepSpeed up for the run, where the launcher asks for it.

    `accelerator` was made without mixed precision: DeepSpeed would round the weights that train to bfloat16, whereas
    autocast leaves them as they are.

    Raises:
        UserError: the launcher or the run asks for what DeepSpeed does not support here.
    """
    if not is_requested():
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:  # Accelerate would silently fall back to DDP
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = plugin
        set_distributed_type(accelerator, DistributedType.DEEPSPEED)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    zero = settings.get("zero_optimization", {})
    offloads = [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
    unsupported = {
        f"zero_stage {zero.get('stage')}": zero.get("stage") != 2,
        "offloading": any(device not in (None, "none") for device in offloads),
        "an optimizer or scheduler of DeepSpeed's": "optimizer" in settings or "scheduler" in settings,
    }
    if found := [name for name, present in unsupported.items() if present]:
        raise UserError("not supported", where="DeepSpeed's settings", met=", ".join(found), wanted=_SUPPORTED)
    choices = (
        ("project", config.project, False),
        ("optimizer", config.optimizer, "adamw"),
        ("compile", config.compile, False),
    )
    for key, value, supported in choices:
        if value != supported:
            raise UserError("does not go with DeepSpeed", where=key, met=str(value), wanted=str(supported))
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    settings["gradient_accumulation_steps"] = accumulation_steps(config)
    settings["gradient_clipping"] = config.clip
    if config.mixed_precision == "bf16":
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        settings["torch_autocast"] = autocast


def deepspeed_optimizer(accelerator: Accelerator) -> Any:
    """Return DeepSpeed's optimiser around that of the run; None without DeepSpeed."""
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    return wrapped.engine.optimizer if wrapped else None


def full_moments(module: Step, optimizer: Any) -> dict[str, Tensor]:
    """Return all moments, gathered, by "PARAMETER:MOMENT". All processes have to call this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(optimizer)
    step = next(iter(optimizer.optimizer.state.values()))["step"]
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found |= {f"{name}:{kind}": safe_get_full_optimizer_state(parameter, kind).cpu() for kind in _MOMENTS}
            found[f"{name}:step"] = torch.tensor(float(step))  # one tensor per parameter, as in a file
    return found


@torch.no_grad()
def restore_moments(module: Step, optimizer: Any, moments: Mapping[str, Tensor]) -> None:
    """Set DeepSpeed's moments to `moments`, as `full_moments` returned them, and its weights to those of `module`.

    Raises:
        UserError: the moments of other parameters, or of another optimiser.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    expected = {f"{name}:{kind}" for name in trainable for kind in (*_MOMENTS, "step")}
    if differing := sorted(expected ^ moments.keys()):
        where = "the moments of the checkpoint"
        raise UserError("the tensors are not this optimiser's", where=where, met=", ".join(differing[:3]))
    step = next(tensor for name, tensor in moments.items() if name.endswith(":step"))
    for flat in optimizer.single_partition_of_fp32_groups:
        zeros = {kind: torch.zeros_like(flat) for kind in _MOMENTS}
        optimizer.optimizer.state[flat] = {"step": step.clone(), **zeros}
    _link(optimizer)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, parameter.data.float())
            for kind in _MOMENTS:
                value = moments[f"{name}:{kind}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, kind)


def _link(optimizer: Any) -> None:
    """Link parameters with their moments. DeepSpeed does it once, when only the first group has its moments."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
