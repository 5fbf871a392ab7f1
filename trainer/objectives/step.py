"""One training step in one forward, whatever its objective.

Everything happens inside `Step.forward`: methods called past a DDP wrapper would leave gradients unaveraged, and say
nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.config import Config
from trainer.data.loader import Need
from trainer.data.normalise import normalised
from trainer.data.unpack import unpacked
from trainer.measure.counting import counting
from trainer.measure.flops import Costs
from trainer.measure.judge import Judged, judge
from trainer.model.grounding import MEAN, STD
from trainer.model.sa2va import Sa2VA
from trainer.modes import evaluating
from trainer.objectives.dual_loop import dual_loop
from trainer.objectives.noise import object_generators
from trainer.objectives.passes import Batch, Passes, cross_entropy
from trainer.objectives.reverse_loop import reverse_loop
from trainer.objectives.teacher import Teacher

FIELDS = {
    "dual": ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2"),
    "segment": ("pixel_values1", "g_pixel_values1", "masks1"),
    "describe": ("pixel_values1", "prompt_masks1"),
    "reverse": ("pixel_values1", "g_pixel_values1"),
}
"""What each objective reads of a batch."""
NEED: dict[str, Need] = {"dual": "regions", "segment": "texts", "describe": "texts", "reverse": "texts"}
"""What each objective needs of an object."""
COUNTED = ("tokens", "flops")
"""Results of a step that are amounts: tokens that the student read, operations of the model."""
UNREACHED = {"describe": ("text_hidden_fcs", "sam_mask_decoder", "sam_image_encoder")}
"""Parts of the model that no loss of an objective reaches."""
_WEIGHTS = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang", "anchor": "lambda_anchor"}


class Step(nn.Module):
    """The step of each objective.

    Args:
        model: on its device, with its trainable parameters chosen.
        config: of the run.
    """

    def __init__(self, model: Sa2VA, config: Config) -> None:
        super().__init__()
        self._no_split_modules = sorted(model.layer_names)  # FSDP gathers one of these at a time
        self.model, self.config = model, config
        self.passes = Passes(model, config)
        self.teacher = Teacher(model, config.ema_decay)
        self.costs: Costs | None = None
        """What the model's work costs, where it is to be counted."""

    def forward(self, batch: Batch, objective: str) -> dict[str, Tensor]:
        """Run one step.

        Args:
            batch: what `trainer.data.loader.Loader` yields, with `FIELDS[objective]`.
            objective: a key of `FIELDS`.

        Returns:
            `loss`, with gradient, its parts and statistics, and what is `COUNTED`, all of shape (). Each loss is a mean
            over the batch's M objects (each is a row of the language model, and a mask).

        Raises:
            UserError: an object that has no text, or no prompt cell, where the objective needs it.
        """
        batch = self._to_device(batch)
        draws = object_generators(batch, self.config.seed)
        with counting(self.model) as counts:
            match objective:
                case "dual":
                    parts = dual_loop(self.passes, self.teacher, batch, draws)
                case "reverse":
                    parts = reverse_loop(self.passes, batch, draws)
                case "describe":
                    parts = self._describe(batch)
                case _:
                    parts = self._segment(batch, draws)
        flops = self.costs.of(counts) if self.costs else torch.zeros(())
        return self._total(parts) | {"tokens": counts.tokens, "flops": flops}

    def _segment(self, batch: Batch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        """caption -> mask, supervised."""
        rows = self.passes.question(batch, self.passes.chosen_texts(batch), draws)
        visual_tokens, sam_features = (
            self.model.encode_image(batch["pixel_values1"]),
            self.model.encode_sam(batch["g_pixel_values1"]),
        )
        logits, lang = self.passes.segment(batch, rows, visual_tokens, sam_features)
        return {**self.passes.mask_losses(logits, batch["masks1"], draws), "lang": lang}

    def _describe(self, batch: Batch) -> dict[str, Tensor]:
        """mask -> caption, supervised."""
        answers = [self.passes.tokens_of(text) for text in self.passes.chosen_texts(batch)]
        visual_tokens = self.model.encode_image(batch["pixel_values1"])
        logits, targets, row_of = self.passes.describe(batch, visual_tokens, batch["prompt_masks1"], answers, answers)
        return {"caption": cross_entropy(logits, targets, row_of, len(answers))}

    def judge(self, batch: Batch, objective: str) -> Judged:
        """What the student makes of a batch, with the fields `trainer.measure.judge.JUDGED[objective]`."""
        with evaluating(self):
            return judge(self.passes, self._to_device(batch), objective)

    def _total(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """`parts` with their weighted sum; `caption` weighs 1, and what has no weight is a statistic."""
        weighed = {name: getattr(self.config, weight) for name, weight in _WEIGHTS.items()} | {"caption": 1.0}
        loss = torch.stack([weighed[name] * value for name, value in parts.items() if name in weighed]).sum()
        # Each trainable tensor takes part in each objective: DDP would leave one that does not unaveraged for good.
        # Under FSDP what lies in shares is left out: processes agree there on what has a gradient.
        rest = [p.sum() for p in self.model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        loss = loss + 0 * torch.stack(rest).sum() if rest else loss
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _to_device(self, batch: Batch) -> Batch:
        device = self.model.device
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        pixels = {k: normalised(v, MEAN, STD) for k, v in moved.items() if k.startswith("pixel_values")}
        return moved | pixels | {k: unpacked(v) for k, v in moved.items() if k.startswith("masks")}
