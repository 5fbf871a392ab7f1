"""What the objectives that train on conversations share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Config
from trainer.data.batch import ConversationBatch, required
from trainer.objectives.conversation_judging import judge_conversations
from trainer.objectives.judging import POINTS_PER_SIDE, Judged
from trainer.objectives.noise import sample_generators
from trainer.objectives.objective import Objective
from trainer.objectives.passes import Predicted, cross_entropy_by_row, full_precision
from trainer.transfer import to_device

_MASK_LOSSES = ("bce", "dice", "bce_uniform", "dice_uniform")
SA2VA_MASKS = 5
"""Masks of each picture over which Sa2VA's own training takes its mask losses."""
_SA2VA_GUARD = 1e-4
"""Sa2VA's own training divides the sum of N Dice losses by N + this. For bce, a mean over points, no matter."""


class ConversationObjective(Objective[ConversationBatch]):
    """The answers of conversations, and the masks that they ask for.

    The key `loss_means` says what the losses are means over.
    """

    training_fields = ()
    judging_fields = ()
    reads_conversations = True
    language_loss: ClassVar[str] = "lang"
    """Name of the answers' cross-entropy."""
    predicts_masks: ClassVar[bool] = True
    """Whether its conversations may ask for masks."""

    @classmethod
    def unit_of(cls, name: str, config: Config) -> str:
        if config.loss_means == "sa2va":
            return "frames" if name in _MASK_LOSSES else "tokens"
        return "masks" if name in _MASK_LOSSES else "rows"

    def generators(self, batch: ConversationBatch) -> list[torch.Generator]:
        """One generator per mask; it depends on the sample and on the number of the mask among those of the sample."""
        seg = self.passes.model.prompts.seg
        rows = zip(batch.rows, batch.sample_of_row, strict=True)
        sample_of_seg = [sample for row, sample in rows for _ in range(row.ids.count(seg))]
        samples = [sample_of_seg[number] for number in batch.seg_of_mask.tolist()]
        return sample_generators(batch, samples, self.passes.config.seed)

    def losses(self, batch: ConversationBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        """The language loss; with masks `bce`, `dice`, `bce_uniform` and `dice_uniform`, see `Passes.mask_losses`."""
        as_sa2va = self.passes.config.loss_means == "sa2va"
        numbers = [*range(len(draws))]
        if as_sa2va:
            numbers = five_masks(batch.picture_of_mask.tolist(), draws)
        decoded = sorted({*numbers})
        predicted = self.passes.predict(batch, torch.tensor(decoded, dtype=torch.int64))
        language = {self.language_loss: self._language(predicted, len(batch.rows)) + predicted.idle}
        if not self.predicts_masks:
            return language
        if not numbers:
            return {name: predicted.idle for name in _MASK_LOSSES} | language
        logits = predicted.masks
        masks = required(batch.masks)
        if as_sa2va:
            place = {number: place for place, number in enumerate(decoded)}
            logits = logits.index_select(0, to_device(torch.tensor([place[n] for n in numbers]), logits.device))
            masks = masks.index_select(0, to_device(torch.tensor(numbers), masks.device))
        chosen = [draws[number] for number in numbers]
        of_masks = self.passes.mask_losses(logits, masks, chosen, "zeros" if as_sa2va else "border")
        if as_sa2va:
            of_masks["dice"] = of_masks["dice"] * (len(numbers) / (len(numbers) + _SA2VA_GUARD))
        return of_masks | language

    def _language(self, predicted: Predicted, rows: int) -> Tensor:
        """Cross-entropy of the answers, (): see the key `loss_means`."""
        logits, labels = predicted.logits, predicted.labels
        if self.passes.config.loss_means == "sa2va":
            with full_precision(logits):
                return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)
        each = cross_entropy_by_row(logits, labels, predicted.row_of, max(rows, 1))
        return each.mean()

    def judge(self, batch: ConversationBatch, side: int = POINTS_PER_SIDE) -> Judged:
        return judge_conversations(self.passes, batch, side)


def five_masks(picture_of_mask: Sequence[int], draws: Sequence[torch.Generator]) -> list[int]:
    """Return the numbers of `SA2VA_MASKS` masks of each picture, as Sa2VA's own training takes them.

    Fewer are repeated in their order; of more, as many are drawn, by the generator of the picture's first mask.

    Args:
        picture_of_mask: N numbers, never falling.
        draws: N generators.
    """
    taken: list[int] = []
    for _, group in groupby(range(len(picture_of_mask)), key=picture_of_mask.__getitem__):
        numbers = [*group]
        if len(numbers) > SA2VA_MASKS:
            order = torch.randperm(len(numbers), generator=draws[numbers[0]]).tolist()
            numbers = [numbers[i] for i in order]
        taken += (numbers * SA2VA_MASKS)[:SA2VA_MASKS]
    return taken
