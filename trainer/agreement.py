"""Values and decisions that all processes of a run share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from shards.errors import UserError
from trainer.transfer import to_device

T = TypeVar("T")


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Return on every process what `decide` returns on the main one; a `UserError` there is raised on all."""
    outcome: list[T | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [decide()]
        except UserError as error:
            outcome = [error]
    [decided] = broadcast_object_list(outcome)
    if isinstance(decided, UserError):
        raise decided
    return decided


def over_processes(
    accelerator: Accelerator,
    values: Mapping[str, torch.Tensor],
    amounts: Mapping[str, torch.Tensor | float],
    signal: int,
) -> tuple[dict[str, float], dict[str, list[float]], int]:
    """Combine the numbers of all processes in one collective.

    Args:
        accelerator: of the run.
        values: tensors ().
        amounts: numbers, or tensors ().
        signal: number of a signal that this process received, or 0.

    Returns:
        The mean of each value over the processes, each amount on every process, in the order of their ranks, and the
        highest signal.
    """
    numbers = [*values.values(), *amounts.values(), signal]
    on_device = [n for n, v in enumerate(numbers) if isinstance(v, torch.Tensor) and v.device.type != "cpu"]
    others = [n for n in range(len(numbers)) if n not in on_device]
    row = to_device(torch.tensor([float(numbers[n]) for n in others], dtype=torch.float32), accelerator.device)
    if on_device:
        row = torch.cat([torch.stack([torch.as_tensor(numbers[n], dtype=torch.float32) for n in on_device]), row])
    gathered = accelerator.gather(row[None]).cpu()  # here the host waits for the step
    rows = torch.empty_like(gathered)
    rows[:, [*on_device, *others]] = gathered
    means = dict(zip(values, rows[:, : len(values)].mean(0).tolist(), strict=True))
    each = dict(zip(amounts, rows[:, len(values) : -1].T.tolist(), strict=True))
    return means, each, int(rows[:, -1].max())


def stop_unless_finite(
    means: dict[str, float], here: dict[str, torch.Tensor], step: int, keys: dict[str, list[str]]
) -> None:
    """Raise `UserError` on every process where a loss or the gradient norm of any process is not finite.

    The gradient norm, `grad_norm`, is that of all processes together. Where a loss is not finite either, only the loss
    is reported, by the process that has it.

    Args:
        means: of losses and gradient norm over all processes, so that all decide alike.
        here: losses and gradient norm on this process.
        step: optimiser step, for the message.
        keys: of this process's samples in the step, by objective, for the message.
    """
    anywhere = {name for name, value in means.items() if not math.isfinite(value)}
    if not anywhere:
        return
    reported = anywhere - {"grad_norm"} or anywhere
    broken = {name: float(value) for name, value in here.items() if name in reported and not math.isfinite(value)}
    samples = "; ".join(f"objective {objective}, samples {', '.join(names)}" for objective, names in keys.items())
    raise UserError(
        "loss or gradient is not finite",
        where=f"step {step}, {samples}",
        met=", ".join(f"{name} {value}" for name, value in broken.items()) or "finite here, not on another process",
        do="nothing was updated in this step",
    )
