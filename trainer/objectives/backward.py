"""The gradient of one optimiser step, for one objective or a mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from trainer.config import Config
from trainer.data.stream import Stream
from trainer.modes import autocast
from trainer.objectives import load_objective
from trainer.objectives.step import COUNTED
from trainer.transfer import to_device

Losses = dict[str, Tensor]


class Backward:
    """Runs the batches of an optimiser step forward and backward.

    The gradient is that of the sum over objectives of weight times mean loss. The mean is over all units (objects,
    rows, tokens, masks: `Objective.unit_of`) that the step takes for the objective, in whatever batches and on whatever
    processes they are.

    Args:
        accelerator: made with `accumulation_steps`.
        module: the `Step`, prepared by Accelerate.
        parameters: the trainable ones.
        config: of the run.
    """

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, parameters: Sequence[nn.Parameter], config: Config
    ) -> None:
        self._accelerator = accelerator
        self._module = module
        self._parameters = parameters
        self._precision = config.mixed_precision
        self._config = config
        self._mix = config.objectives()
        self._project = config.project

    def __call__(self, stream: Stream) -> tuple[Losses, Losses, dict[str, list[str]]]:
        """Run the batches of one optimiser step.

        Returns:
            Losses and statistics, each (); their mean over the processes is the mean over the step's units. One without
            a unit on any process is left out. In a mix their names begin with the objective's, as in dual/bce, and
            `loss` is the weighted sum.
            Amounts of what is `COUNTED`, each ().
            Keys of the samples, by objective.
        """
        weights = self._unit_weights(stream.counts())
        losses: Losses = {}
        counts: Losses = {}
        keys: dict[str, list[str]] = {name: [] for name in self._mix}
        others: list[Tensor] | None = None
        for objective, batch in stream.step():
            if self._project and others is None and load_objective(objective).projected:
                others = self._take()
            keys[objective] += batch.keys
            weight = self._mix[objective].weight
            shares = {unit: weight * batch.counts[unit] for unit, weight in weights[objective].items()}
            with self._accelerator.no_sync(self._module) if self._project else self._accumulated():
                with record_function("forward"), autocast(self._accelerator.device, self._precision):
                    result = self._module(batch, objective, shares)
                # Accelerate divides by the number of batches that it accumulates.
                with record_function("backward"):
                    self._accelerator.backward(result["loss"] * (weight * self._divided))
            for name in COUNTED:
                counts[name] = counts.get(name, 0) + result.pop(name)
            for name, value in result.items():
                if name == "loss" or weights[objective][load_objective(objective).unit_of(name, self._config)]:
                    label = name if len(self._mix) == 1 else f"{objective}/{name}"
                    losses[label] = losses.get(label, 0) + value.detach()
        if len(self._mix) > 1:
            parts = [entry.weight * losses[f"{name}/loss"] for name, entry in self._mix.items()]
            losses = {"loss": torch.stack(parts).sum(), **losses}
        if others is not None:
            losses["reverse/alignment"] = self._add_projected(others)
        return losses, counts, keys

    def _unit_weights(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
        """Weight of one unit in this step by objective and unit: processes over units of all processes, 0 without any.

        Averaging over the processes afterwards makes it 1 over all units.
        """
        places = [(name, unit) for name, units in counts.items() for unit in sorted(units)]
        together = [counts[name][unit] for name, unit in places]
        if self._accelerator.num_processes > 1:
            here = to_device(torch.tensor(together), self._accelerator.device)
            together = self._accelerator.reduce(here, "sum").tolist()
        weights: dict[str, dict[str, float]] = {name: {} for name in counts}
        for (name, unit), total in zip(places, together, strict=True):
            weights[name][unit] = self._accelerator.num_processes / total if total else 0.0
        return weights

    @property
    def _divided(self) -> int:
        return int(self._accelerator.gradient_accumulation_steps)

    def _accumulated(self) -> nullcontext[None]:
        context: nullcontext[None] = self._accelerator.accumulate(self._module)
        return context

    def _take(self) -> list[Tensor]:
        """Return the gradients so far and clear them."""
        taken = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return taken

    def _add_projected(self, others: list[Tensor]) -> Tensor:
        """Make the gradient since `_take` orthogonal to the `others`, and add both.

        Both are averaged over the processes first: what is orthogonal on each need not be so in the mean.

        Returns:
            Cosine between the two before projection, ().
        """
        added = self._take()
        for gradients in (others, added):
            flat = torch.cat([g.flatten() for g in gradients])
            flat = self._accelerator.reduce(flat, "mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        dot, added_squared, others_squared = (
            torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
            for first, second in ((added, others), (added, added), (others, others))
        )
        parallel = torch.where(others_squared > 0, dot / others_squared, 0.0)
        for parameter, gradient, other in zip(self._parameters, added, others, strict=True):
            parameter.grad = other + gradient - parallel * other
        return dot / (added_squared * others_squared).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def accumulation_steps(config: Config) -> int:
    """Batches that Accelerate accumulates before DDP averages gradients over the processes.

    Gradients that are projected are averaged in `Backward` instead.
    """
    return 1 if config.project else config.accumulation * len(config.objectives())
