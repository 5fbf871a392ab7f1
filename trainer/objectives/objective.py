"""The interface of an objective: what it reads of a batch, what it needs, its losses and its judging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from trainer.config import Config
from trainer.data.batch import Batch, PairBatch
from trainer.data.decoding import Need
from trainer.objectives.judging import POINTS_PER_SIDE, Judged
from trainer.objectives.noise import object_generators
from trainer.objectives.passes import Passes
from trainer.objectives.teacher import Teacher

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Objective(ABC, Generic[AnyBatch]):
    """A way to train the model on a batch, and to judge what it has learnt.

    Args:
        passes: of the model, under the configuration of the run.
        teacher: writes pseudo captions in training; judging does without.
    """

    training_fields: ClassVar[tuple[str, ...]]
    """Fields of a batch that the losses read, such as "pixel_values1"."""
    judging_fields: ClassVar[tuple[str, ...]]
    """Fields of a batch that judging reads."""
    needs: ClassVar[Need | None]
    """What an object must have to be trained on, or judged; None: nothing."""
    loss_weights: ClassVar[Mapping[str, str | float]]
    """The weight of each loss by its name: a key of the configuration, or a number."""
    unreached_parts: ClassVar[tuple[str, ...]] = ()
    """Parts of the model (names as in `trainable`) that no loss reaches."""
    target_frame: ClassVar[int | None] = None
    """The frame, 1 or 2, whose masks are predicted; None where none are."""
    shows_region: ClassVar[bool] = False
    """Whether frame 1's region is the question, and belongs into a picture of it."""
    swaps_captions: ClassVar[bool] = False
    """Whether judging generates captions and swaps those of two objects, which should then be in one batch."""
    reads_conversations: ClassVar[bool] = False
    """Whether its batches are `ConversationBatch`; else they are `PairBatch`."""
    conversation_kind: ClassVar[str | None] = None
    """Kind of all its conversations; None: the one that suits each sample."""
    projected: ClassVar[bool] = False
    """Whether `project` makes its gradient orthogonal to that of the other objectives, which therefore come first."""

    def __init__(self, passes: Passes, teacher: Teacher | None = None) -> None:
        self.passes = passes
        self.teacher = teacher

    @classmethod
    def panel_fields(cls) -> tuple[str, ...]:
        """Fields that judging reads, and those that a picture of a judged object shows besides."""
        return tuple(dict.fromkeys([*cls.judging_fields, "g_pixel_values1", "masks1"]))

    @classmethod
    def unit_of(cls, name: str, config: Config) -> str:
        """Return what a loss, or a statistic, is a mean over: a name in `Batch.counts`."""
        return "objects"

    def generators(self, batch: AnyBatch) -> list[torch.Generator]:
        """The `draws` of `losses`."""
        assert isinstance(batch, PairBatch)
        return object_generators(batch, self.passes.config.seed)

    @abstractmethod
    def losses(self, batch: AnyBatch, draws: list[torch.Generator]) -> dict[str, Tensor]:
        """Losses, each () and a mean over the batch's units (`unit_of`), 0 without any; statistics have no weight.

        Args:
            batch: on the model's device, with `training_fields`.
            draws: what `generators` returns.

        Raises:
            UserError: an object without what the objective needs.
        """

    @abstractmethod
    def judge(self, batch: AnyBatch, side: int = POINTS_PER_SIDE) -> Judged:
        """What the model, in evaluation mode, makes of a batch. To be called without gradient.

        Args:
            batch: on the model's device, with `judging_fields`.
            side: points per side at which predicted and true masks are compared.

        Raises:
            UserError: an object without what the objective needs.
        """
