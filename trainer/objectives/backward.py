"""The gradient of one optimiser step: of one objective, or of several at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.config import Config
from trainer.data.stream import Stream
from trainer.modes import autocast
from trainer.objectives import load_objective
from trainer.objectives.step import COUNTED

Losses = dict[str, Tensor]


class Backward:
    """Runs the batches of a step forward and backward.

    The gradient is that of the sum over objectives of weight times the mean loss over all objects that the step takes
    for them, whatever batches and processes these lie in.

    Args:
        accelerator: made with `accumulation_steps`.
        module: the `Step`, prepared.
        parameters: that train.
        config: of the run.
    """

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, parameters: Sequence[nn.Parameter], config: Config
    ) -> None:
        self._accelerator, self._module, self._parameters = accelerator, module, parameters
        self._precision = config.mixed_precision
        self._mix, self._project = config.objectives(), config.project

    def __call__(self, stream: Stream) -> tuple[Losses, Losses, dict[str, list[str]]]:
        """Run one optimiser step's batches: losses, amounts of what is counted, each (), and each objective's samples.

        In a mix, values are named such as dual/bce, and `loss` is the weighted sum. A loss's mean over the processes is
        its mean over the step's objects.
        """
        shares = self._shares(stream.objects())
        losses: Losses = {}
        counts: Losses = {}
        keys: dict[str, list[str]] = {name: [] for name in self._mix}
        others: list[Tensor] | None = None
        for objective, batch in stream.step():
            if self._project and others is None and load_objective(objective).projected:
                others = self._take()
            keys[objective] += batch.keys
            weight = self._mix[objective].weight
            share = shares[objective] * len(batch.image_of_object)
            with self._accelerator.no_sync(self._module) if self._project else self._accumulated():
                with autocast(self._accelerator.device, self._precision):
                    result = self._module(batch, objective)
                # Accelerate divides by the number of batches that it accumulates.
                self._accelerator.backward(result["loss"] * (share * weight * self._divided))
            for name in COUNTED:
                counts[name] = counts.get(name, 0) + result.pop(name)
            for name, value in result.items():
                label = name if len(self._mix) == 1 else f"{objective}/{name}"
                losses[label] = losses.get(label, 0) + value.detach() * share
        if len(self._mix) > 1:
            parts = [share.weight * losses[f"{name}/loss"] for name, share in self._mix.items()]
            losses = {"loss": torch.stack(parts).sum(), **losses}
        if others is not None:
            losses["reverse/alignment"] = self._add_projected(others)
        return losses, counts, keys

    def _shares(self, objects: dict[str, int]) -> dict[str, Tensor]:
        """Return the weight of an object of each objective in this step, () float32 each.

        It is the number of processes, divided by the number of objects of all of them.

        Gradients are averaged over the processes afterwards.
        """
        own = torch.tensor([*objects.values()], dtype=torch.float32, device=self._accelerator.device)
        together = self._accelerator.reduce(own, "sum")
        return dict(zip(objects, (self._accelerator.num_processes / together).unbind(), strict=True))

    @property
    def _divided(self) -> int:
        return int(self._accelerator.gradient_accumulation_steps)

    def _accumulated(self) -> nullcontext[None]:
        context: nullcontext[None] = self._accelerator.accumulate(self._module)
        return context

    def _take(self) -> list[Tensor]:
        """The gradients so far; what follows is accumulated apart."""
        taken = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return taken

    def _add_projected(self, others: list[Tensor]) -> Tensor:
        """Make the reverse loop's gradient orthogonal to that of the `others`, and add both; their cosine before, ().

        Both are means over the processes first: what is orthogonal in each need not be so in the mean.
        """
        own = self._take()
        for gradients in (others, own):
            flat = torch.cat([g.flatten() for g in gradients])
            flat = self._accelerator.reduce(flat, "mean")
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        dot, ours, theirs = (
            torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
            for first, second in ((own, others), (own, own), (others, others))
        )
        parallel = torch.where(theirs > 0, dot / theirs, 0.0)
        for parameter, gradient, other in zip(self._parameters, own, others, strict=True):
            parameter.grad = other + gradient - parallel * other
        return dot / (ours * theirs).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def accumulation_steps(config: Config) -> int:
    """How many batches Accelerate accumulates before it averages gradients over processes.

    Where gradients are projected they are averaged here, not by DDP.
    """
    return 1 if config.project else config.accumulation * len(config.objectives())
