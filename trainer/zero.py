"""DeepSpeed's ZeRO-2 (Rajbhandari et al. 2020): gradients and moments in shares, weights whole on every process.

`accelerate launch --config_file trainer/launch/zero2.yaml` asks for it. DeepSpeed averages, clips and steps inside
of backward, and keeps moments of flattened shares; it leaves a step out whose gradient is not finite.
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
from trainer.fsdp import set_type
from trainer.objectives.backward import accumulation_steps
from trainer.objectives.step import Step

_WANTED = "trainer/launch/zero2.yaml"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def is_asked() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def take_up(accelerator: Accelerator, config: Config) -> None:
    """Set DeepSpeed up for the run, where the launcher asks for it.

    `accelerator` was made without mixed precision: DeepSpeed would round the weights that train to bfloat16, whereas
    autocast leaves them as they are.

    Raises:
        UserError: the launcher or the run asks for what does not go with it.
    """
    if not is_asked():
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:  # Accelerate would fall back to DDP without a word
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = plugin
        set_type(accelerator, DistributedType.DEEPSPEED)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    zero = settings.get("zero_optimization", {})
    offloads = [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
    unfit = {
        f"zero_stage {zero.get('stage')}": zero.get("stage") != 2,
        "offloading": any(device not in (None, "none") for device in offloads),
        "an optimizer or scheduler of DeepSpeed's": "optimizer" in settings or "scheduler" in settings,
    }
    if found := [name for name, present in unfit.items() if present]:
        raise UserError("not supported", where="DeepSpeed's settings", met=", ".join(found), wanted=_WANTED)
    own = (("project", config.project, False), ("optimizer", config.optimizer, "adamw"))
    for where, given, only in (*own, ("compile", config.compile, False)):
        if given != only:
            raise UserError("does not go with DeepSpeed", where=where, met=str(given), wanted=str(only))
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    settings["gradient_accumulation_steps"] = accumulation_steps(config)
    settings["gradient_clipping"] = config.clip
    if config.mixed_precision == "bf16":
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        settings["torch_autocast"] = autocast


def sharing(accelerator: Accelerator) -> Any:
    """DeepSpeed's optimiser around the run's; None where it is not used."""
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    return wrapped.engine.optimizer if wrapped else None


def moments(loop: Step, optimizer: Any) -> dict[str, Tensor]:
    """All moments, by "name of the parameter:name of the moment". Every process has to ask."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(optimizer)
    step = next(iter(optimizer.optimizer.state.values()))["step"]
    found: dict[str, Tensor] = {}
    for name, parameter in loop.named_parameters():
        if parameter.requires_grad:
            found |= {f"{name}:{kind}": safe_get_full_optimizer_state(parameter, kind).cpu() for kind in _MOMENTS}
            found[f"{name}:step"] = torch.tensor(float(step))  # a tensor each, as in a file
    return found


@torch.no_grad()
def restore(loop: Step, optimizer: Any, found: Mapping[str, Tensor]) -> None:
    """Take up `moments`, and the weights as they are in `loop` now."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    trains = [name for name, parameter in loop.named_parameters() if parameter.requires_grad]
    wanted = {f"{name}:{kind}" for name in trains for kind in (*_MOMENTS, "step")}
    if wanted != found.keys():
        met = ", ".join(sorted(wanted ^ found.keys())[:3])
        raise UserError("the tensors are not this optimiser's", where="the moments of the checkpoint", met=met)
    step = next(tensor for name, tensor in found.items() if name.endswith(":step"))
    for flat in optimizer.single_partition_of_fp32_groups:
        zeros = {kind: torch.zeros_like(flat) for kind in _MOMENTS}
        optimizer.optimizer.state[flat] = {"step": step.clone(), **zeros}
    _link(optimizer)
    for name, parameter in loop.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, parameter.data.float())
            for kind in _MOMENTS:
                value = found[f"{name}:{kind}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, kind)


def _link(optimizer: Any) -> None:
    """Tell parameters of their moments. DeepSpeed does it once, when those of the first group alone are there."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
