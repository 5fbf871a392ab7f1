"""A training step of any objective as the forward of one module.

Everything runs inside `Step.forward`: DDP would silently leave gradients unaveraged if methods of the wrapped module
were called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.config import Config
from trainer.data.batch import Batch
from trainer.model.counting import counting
from trainer.model.flops import Costs
from trainer.model.sa2va import Sa2VA
from trainer.modes import evaluating
from trainer.objectives import load_objective
from trainer.objectives.judging import Judged
from trainer.objectives.objective import Objective
from trainer.objectives.passes import Passes
from trainer.objectives.teacher import Teacher

COUNTED = ("tokens", "padding", "flops")
"""Results of a step that are amounts: tokens that the student reads, its padding tokens, floating point operations."""


class Step(nn.Module):
    """Runs a training step, or judges a batch, for any objective.

    Args:
        model: on its device, with its trainable parameters chosen.
        config: of the run.
    """

    def __init__(self, model: Sa2VA, config: Config) -> None:
        super().__init__()
        self._no_split_modules = sorted(model.layer_names)  # FSDP gathers one of these at a time
        self.model = model
        self.config = config
        self.passes = Passes(model, config)
        self.teacher = Teacher(model, config.ema_decay)
        self.costs: Costs | None = None
        """What the model's work costs, where it is to be counted."""

    def forward(self, batch: Batch, objective: str, shares: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Run one step.

        Args:
            batch: what `trainer.data.loader.Loader` yields, with the objective's `training_fields`.
            objective: a name in `trainer.objectives.OBJECTIVES`.
            shares: by unit (`Objective.unit_of`), a factor of the losses that are means over it; None: 1.

        Returns:
            `loss`, with gradient, its parts and statistics, and what is `COUNTED`, all of shape (). Each loss is a mean
            over the batch's units, times their share.

        Raises:
            UserError: an unknown objective, or an object without what the objective needs.
        """
        batch = batch.to(self.model.device)
        trained = self._objective(objective)
        draws = trained.generators(batch)
        with counting(self.model) as counts:
            losses = trained.losses(batch, draws)
        if shares is not None:
            losses = {name: value * shares[trained.unit_of(name, self.config)] for name, value in losses.items()}
        flops = self.costs.of(counts) if self.costs else torch.zeros(())
        amounts = {
            "tokens": counts.tokens,
            "padding": torch.as_tensor(counts.padding, dtype=torch.float32),
            "flops": flops,
        }
        return self._total(losses, trained.loss_weights) | amounts

    @torch.no_grad()
    def judge(self, batch: Batch, objective: str) -> Judged:
        """Judge the student, without dropout, on a batch with the objective's `judging_fields`."""
        with evaluating(self):
            return self._objective(objective).judge(batch.to(self.model.device))

    @torch.no_grad()
    def call(self, work: Callable[[], None]) -> None:
        """Do `work` as this module's forward."""
        work()

    def _objective(self, name: str) -> Objective[Any]:
        return load_objective(name)(self.passes, self.teacher)

    def _total(self, losses: dict[str, Tensor], weights: Mapping[str, str | float]) -> dict[str, Tensor]:
        """`losses` and statistics with `loss`, the weighted sum of those that have a weight."""
        factors = {name: getattr(self.config, key) if isinstance(key, str) else key for name, key in weights.items()}
        loss = torch.stack([factor * losses[name] for name, factor in factors.items()]).sum()
        # Every trainable tensor takes part in every objective: DDP would never average one that does not again.
        # Sharded tensors (FSDP) need not: processes agree on which of them have a gradient.
        rest = [p.sum() for p in self.model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        loss = loss + 0 * torch.stack(rest).sum() if rest else loss
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}
