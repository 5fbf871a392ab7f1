"""What all processes of a run have to agree on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from shards.errors import UserError

T = TypeVar("T")


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What `decide` returns in the main process; a `UserError` there is raised in all of them."""
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
    """In one collective: the mean of each value () over all processes, what each process says of each amount, and the
    highest of their signals."""
    row = [torch.as_tensor(v, dtype=torch.float32) for v in (*values.values(), *amounts.values(), signal)]
    rows = accelerator.gather(torch.stack([v.to(accelerator.device) for v in row])[None])
    means = dict(zip(values, rows[:, : len(values)].mean(0).tolist(), strict=True))
    each = dict(zip(amounts, rows[:, len(values) : -1].T.tolist(), strict=True))
    return means, each, int(rows[:, -1].max())


def stop_unless_finite(
    means: dict[str, float], own: dict[str, torch.Tensor], step: int, keys: dict[str, list[str]]
) -> None:
    """Raise `UserError` on every process where a loss or the gradient norm of any is not finite.

    `means` are over all processes, so that all agree; `own` are this one's, whose samples, `keys` of each objective,
    are named. The gradient norm, `grad_norm`, is that of all of them: where a loss is not finite either, the process
    that has it is meant.
    """
    anywhere = {name for name, value in means.items() if not math.isfinite(value)}
    if not anywhere:
        return
    told = anywhere - {"grad_norm"} or anywhere
    broken = {name: float(value) for name, value in own.items() if name in told and not math.isfinite(value)}
    met = ", ".join(f"{name} {value}" for name, value in broken.items()) or "finite here, not on another process"
    took = "; ".join(f"objective {objective}, samples {', '.join(names)}" for objective, names in keys.items())
    where = f"step {step}, {took}"
    raise UserError("loss or gradient is not finite", where=where, met=met, do="nothing was updated in this step")
