"""Lay a run out over its processes: device, precision, DDP, FSDP2 or ZeRO-2."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed.fsdp import register_fsdp_forward_method

from trainer import fsdp, zero
from trainer.config import Config
from trainer.objectives.backward import accumulation_steps
from trainer.objectives.step import Step


def make_accelerator(config: Config) -> Accelerator:
    """Return the accelerator of a run: the one place that decides device, precision and strategy.

    They are those that `accelerate launch` was started with.

    Raises:
        UserError: the strategy does not support what the run asks for.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no" if zero.is_requested() else config.mixed_precision,
        gradient_accumulation_steps=accumulation_steps(config),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.collective_timeout))],
    )
    accelerator.gradient_accumulation_steps = accumulation_steps(config)  # the launcher may have set another
    fsdp.set_up(accelerator, config)
    zero.set_up(accelerator, config)
    return accelerator


def lay_out(
    accelerator: Accelerator, module: Step, optimizer: torch.optim.Optimizer
) -> tuple[Step, torch.optim.Optimizer]:
    """Wrap `module` and `optimizer` for the strategy, and return the wrapped ones; both are changed in place.

    Parameters may be other objects afterwards: take them from `module` anew.
    """
    prepared, stepper = accelerator.prepare(module, optimizer)
    if fsdp.is_sharded(module):
        for name in ("judge", "call"):
            register_fsdp_forward_method(module, name)
    module.teacher.reset(module)
    return prepared, stepper


def layout_of(accelerator: Accelerator) -> str:
    """Return the layout in words, with a leading comma; empty where each process holds all."""
    layouts = {
        DistributedType.FSDP: "sharded parameters (FSDP2)",
        DistributedType.DEEPSPEED: "sharded moments (ZeRO-2)",
    }
    layout = layouts.get(accelerator.distributed_type)
    return f", {layout}" if layout else ""
