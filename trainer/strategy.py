"""How a run is laid out over its processes: device, precision, DDP or shares."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed.fsdp import register_fsdp_forward_method

from trainer import fsdp, zero
from trainer.config import Config
from trainer.objectives.backward import accumulation_steps
from trainer.objectives.step import Step


def make_accelerator(config: Config) -> Accelerator:
    """The one place that decides device, precision and strategy, as `accelerate launch` was told.

    Raises:
        UserError: the strategy does not go with the run.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no" if zero.is_asked() else config.mixed_precision,
        gradient_accumulation_steps=accumulation_steps(config),
        log_with="tensorboard",
        project_dir=config.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.collective_timeout))],
    )
    accelerator.gradient_accumulation_steps = accumulation_steps(config)  # the launcher may have said otherwise
    fsdp.take_up(accelerator, config)
    zero.take_up(accelerator, config)
    return accelerator


def lay_out(
    accelerator: Accelerator, loop: Step, optimizer: torch.optim.Optimizer
) -> tuple[Step, torch.optim.Optimizer]:
    """What to call in place of `loop` and `optimizer`, which are changed in place.

    Parameters may be others afterwards: take them from `loop` anew.
    """
    prepared, stepper = accelerator.prepare(loop, optimizer)
    if fsdp.is_shared(loop):
        register_fsdp_forward_method(loop, "judge")
        loop.model.together = partial(fsdp.any_process, device=accelerator.device)
    loop.teacher.follow(loop)
    return prepared, stepper


def layout_of(accelerator: Accelerator) -> str:
    """What to say about it; nothing where each process holds all."""
    shares = {
        DistributedType.FSDP: "parameters in shares (FSDP2)",
        DistributedType.DEEPSPEED: "moments in shares (ZeRO-2)",
    }
    said = shares.get(accelerator.distributed_type)
    return f", {said}" if said else ""
