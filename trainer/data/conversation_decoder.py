"""Samples into batches of conversations: the pictures, masks and cells that their rows need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from shards.codec import Bool
from shards.errors import UserError
from shards.format import FieldName
from shards.reader import Array, StoredSample
from shards.recipe import Recipe
from trainer.conversations.conversation import Conversation, Target
from trainer.conversations.make import make_conversations
from trainer.conversations.options import ConversationOptions
from trainer.conversations.sample import SampleTexts
from trainer.data.batch import ConversationBatch
from trainer.data.decoding import (
    Buffers,
    Decoder,
    Layout,
    Normalise,
    Place,
    SampleVisit,
    Work,
    stored_field,
)
from trainer.model.prompts import Prompts
from trainer.model.rows import TokenRow, count_labels

_TENSORS: tuple[FieldName, ...] = ("pixel_values", "g_pixel_values", "masks")
"""What the buffers of a batch hold."""
TOO_SHORT = "rows left out because nothing of an answer is within max_row_tokens"
CUT_TARGETS = "masks left out because their [SEG] is beyond max_row_tokens"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A conversation as a row of tokens."""

    conversation: Conversation
    """Its targets are those whose `[SEG]` is in the row."""
    tokens: TokenRow
    trained: int
    """Tokens with a label."""
    regions: Bool
    """(Q, 16, 16) bool: the cells of its regions in its last frame."""

    @property
    def predicted(self) -> tuple[int, ...]:
        """The frames in which masks are predicted."""
        return self.conversation.frames if self.conversation.targets else ()


@dataclass(frozen=True, slots=True)
class ConversationPlan:
    """Rows that a visit makes of a sample."""

    sample: StoredSample
    meta: Mapping[str, Any]
    rows: tuple[PlannedRow, ...]
    shown: tuple[int, ...]
    """The frames, from 0, that any row shows, each once."""
    sizes: Mapping[str, int]
    """Rows of each tensor of a batch that the sample takes."""
    copy: int
    """How often the sample came before in this epoch."""
    notes: Counter[str]
    """See `ConversationBatch.notes`."""

    @classmethod
    def of(
        cls, sample: StoredSample, rows: Sequence[PlannedRow], copy: int = 0, notes: Counter[str] | None = None
    ) -> ConversationPlan:
        """Return the plan of rows about a sample."""
        shown = dict.fromkeys(frame for row in rows for frame in row.conversation.frames)
        targets = [len(row.conversation.targets) for row in rows for _ in row.predicted]
        sizes = {"pixel_values": len(shown), "g_pixel_values": len(targets), "masks": sum(targets)}
        return cls(sample, sample.meta, tuple(rows), tuple(shown), sizes, copy, notes or Counter())

    @property
    def predictions(self) -> Iterator[tuple[int, tuple[Target, ...]]]:
        """Each frame of each row with targets, and these targets."""
        return ((frame, row.conversation.targets) for row in self.rows for frame in row.predicted)


class ConversationDecoder(Decoder[ConversationPlan]):
    """Makes conversations of samples, and decodes the frames and masks that they need.

    Args:
        recipe: of the shards.
        options: what conversations are made.
        kind: the only kind of conversation; None: the one that fits the source or the sample.
        prompts: turns conversations into tokens; None where nothing will be decoded.
        normalise, pin, buffers: see `Decoder`.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: ConversationOptions,
        kind: str | None,
        prompts: Prompts | None,
        normalise: Normalise,
        pin: bool,
        buffers: int,
    ) -> None:
        super().__init__(recipe, normalise, pin, buffers)
        self._options = options
        self._kind = kind
        self._prompts = prompts
        self._no_regions = np.zeros((0, recipe.grid, recipe.grid), np.bool_)
        self._rows: dict[str, Layout] = {name: self._row(name) for name in _TENSORS}

    def new_buffers(self) -> Buffers:
        return Buffers(self._rows, self._pin, self._buffers)

    def plan(self, visit: SampleVisit) -> ConversationPlan:
        """Make the conversations of a visit and their rows of tokens.

        Raises:
            BadShard: the sample cannot be decoded.
        """
        sample = visit.sample
        prompts = self.prompt_masks(sample)
        cells = prompts.sum(axis=(2, 3), dtype=np.int64)
        conversations, notes = make_conversations(
            SampleTexts(sample.key, visit.source, sample.meta, cells, visit.chosen, visit.texts),
            self._options,
            epoch=visit.epoch,
            visit=visit.number,
            copy=visit.copy,
            other_phrase=visit.other_phrase,
            kind=self._kind,
        )
        return ConversationPlan.of(sample, self.rows_of(sample.key, conversations, prompts, notes), visit.copy, notes)

    def rows_of(
        self, key: str, conversations: Sequence[Conversation], prompts: Bool, notes: Counter[str]
    ) -> list[PlannedRow]:
        """Return the rows of conversations, without those of which nothing is trained, which `notes` counts.

        Args:
            key: of the sample.
            prompts: (F, N, 16, 16), of the sample.
        """
        made = (self._row_of(key, conversation, prompts, notes) for conversation in conversations)
        return [row for row in made if row]

    def prompt_masks(self, sample: StoredSample) -> Bool:
        """Return (F, N, 16, 16) bool: the cells of all objects in all frames."""
        if not sample.objects:
            return np.zeros((sample.frames, 0, self._recipe.grid, self._recipe.grid), np.bool_)
        return np.stack([self.decode(sample, stored_field("prompt_masks", f + 1)) for f in range(sample.frames)])

    def _row_of(self, key: str, conversation: Conversation, prompts: Bool, notes: Counter[str]) -> PlannedRow | None:
        """Return a conversation's row, without the targets that were cut off; None where nothing of it is trained."""
        assert self._prompts
        regions = self._no_regions
        if conversation.regions:
            regions = prompts[conversation.frames[-1], [*conversation.regions]]
        cells = [int(np.count_nonzero(region)) for region in regions]
        try:
            most = self._options.max_text_tokens if self._kind == "describe" else None
            tokens = self._prompts.conversation(key, conversation, cells, self._options.max_row_tokens, most)
        except UserError:  # its pictures and regions alone are longer
            notes[TOO_SHORT] += 1
            return None
        trained = count_labels(tokens)
        if not trained:
            notes[TOO_SHORT] += 1
            return None
        left = conversation.targets[: tokens.ids.count(self._prompts.seg)]
        if len(left) < len(conversation.targets):
            notes[CUT_TARGETS] += len(conversation.targets) - len(left)
            conversation = replace(conversation, targets=left)
        return PlannedRow(conversation, tokens, trained, regions)

    def counts(self, plans: Sequence[ConversationPlan]) -> dict[str, int]:
        together = _sums(plans)
        return {
            "rows": sum(len(plan.rows) for plan in plans),
            "tokens": sum(row.trained for plan in plans for row in plan.rows),
            "masks": together["masks"],
            "frames": together["g_pixel_values"],
        }

    def rows(self, plans: Sequence[ConversationPlan]) -> Mapping[str, int]:
        return _sums(plans)

    def places(self, plans: Sequence[ConversationPlan]) -> list[Place]:
        columns = ([plan.sizes[name] for plan in plans] for name in _TENSORS)
        return [*zip(*(accumulate(column, initial=0) for column in columns), strict=True)][:-1]

    def fill(self, buffers: Buffers, places: Sequence[Place], plans: Sequence[ConversationPlan]) -> None:
        work = Work(self)
        for place, plan in zip(places, plans, strict=True):
            work.begin(plan.sample)
            try:
                self._add(buffers, place, plan, work)
            except Exception:
                plan.sample.compare_now()  # changed bytes are the better reason to give
                raise
        work.do()

    def _add(self, buffers: Buffers, place: Place, plan: ConversationPlan, work: Work) -> None:
        """Add what decodes a plan's sample to `work`."""
        sample = plan.sample
        arrays = buffers.arrays
        picture, predicted, mask = place
        for at, frame in enumerate(plan.shown, picture):
            self.picture(sample, stored_field("pixel_values", frame + 1), [arrays["pixel_values"][at]], work)
        outs: dict[int, list[Array]] = {}
        decoded: dict[tuple[int, tuple[int, ...]], Array] = {}
        for at, (frame, targets) in enumerate(plan.predictions, predicted):
            outs.setdefault(frame, []).append(arrays["g_pixel_values"][at])
            for target in targets:
                out = arrays["masks"][mask]
                mask += 1
                if (same := decoded.setdefault((frame, target.objects), out)) is not out:
                    work.copy(same, out)
                elif target.objects:
                    self.union(sample, stored_field("masks", frame + 1), target.objects, out, work)
                else:
                    out.fill(0)
        for frame, places in outs.items():
            self.picture(sample, stored_field("g_pixel_values", frame + 1), places, work)

    def batch(self, buffers: Buffers, plans: Sequence[ConversationPlan], **known: Any) -> ConversationBatch:
        tensors: dict[str, Any] = {
            name: buffers.tensors[name][:count] if count else None for name, count in _sums(plans).items()
        }
        rows = [row for plan in plans for row in plan.rows]
        seg_of_mask, picture_of_mask = _masks_of(rows)
        notes: Counter[str] = Counter()
        for plan in plans:
            notes.update(plan.notes)
        return ConversationBatch(
            **tensors,
            conversations=[row.conversation for row in rows],
            rows=[row.tokens for row in rows],
            sample_of_row=[number for number, plan in enumerate(plans) for _ in plan.rows],
            image_of_row=_images_of(plans),
            regions=self._regions_of(rows),
            seg_of_mask=torch.tensor(seg_of_mask, dtype=torch.int64),
            picture_of_mask=torch.tensor(picture_of_mask, dtype=torch.int64),
            notes=notes,
            keys=[plan.sample.key for plan in plans],
            recipe=self._recipe,
            meta=[plan.meta for plan in plans],
            copies=[plan.copy for plan in plans],
            **known,
        )

    def _regions_of(self, rows: Sequence[PlannedRow]) -> torch.Tensor:
        """Return `ConversationBatch.regions`."""
        most = max((len(row.regions) for row in rows), default=0)
        regions = np.zeros((len(rows), most, self._recipe.grid, self._recipe.grid), np.bool_)
        for number, row in enumerate(rows):
            regions[number, : len(row.regions)] = row.regions
        return torch.from_numpy(regions)


def _sums(plans: Sequence[ConversationPlan]) -> dict[str, int]:
    """Return the rows of each tensor that the samples take together."""
    return {name: sum(plan.sizes[name] for plan in plans) for name in _TENSORS}


def _images_of(plans: Sequence[ConversationPlan]) -> torch.Tensor:
    """Return `ConversationBatch.image_of_row`."""
    images: list[list[int]] = []
    before = 0
    for plan in plans:
        place = {frame: before + at for at, frame in enumerate(plan.shown)}
        images += [[place[frame] for frame in row.conversation.frames] for row in plan.rows]
        before += len(plan.shown)
    most = max((len(image) for image in images), default=0) or 1
    filled = [image + [-1] * (most - len(image)) for image in images]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(images), most)


def _masks_of(rows: Sequence[PlannedRow]) -> tuple[list[int], list[int]]:
    """Return `ConversationBatch.seg_of_mask` and `picture_of_mask`."""
    seg_of_mask: list[int] = []
    picture_of_mask: list[int] = []
    segs = 0
    pictures = 0
    for row in rows:
        targets = len(row.conversation.targets)
        for _ in row.predicted:
            seg_of_mask += range(segs, segs + targets)
            picture_of_mask += [pictures] * targets
            pictures += 1
        segs += targets
    return seg_of_mask, picture_of_mask
