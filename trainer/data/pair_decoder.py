"""Samples into batches of pairs: objects in turn, in two frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from shards import codec, compiled
from shards.compiled import Job, Row
from shards.errors import BadShard
from shards.format import Field
from shards.program import check_set
from shards.reader import Alike, Array, StoredSample
from shards.recipe import Recipe
from shards.sample import usable_texts
from trainer.data.batch import Frame, PairBatch
from trainer.data.choice import Choice, choose, salts_after, shuffled, take_in_turn
from trainer.data.decoding import (
    NEEDED,
    Buffers,
    Decoder,
    Lazy,
    Need,
    Normalise,
    Place,
    SampleVisit,
    check_memory,
    nbytes,
    number_of,
    stored_field,
)
from trainer.data.object_texts import ObjectTexts

_OF_OBJECTS = ("masks", "prompt_masks")


class PairPlan(NamedTuple):
    """Objects and frames that a visit takes of a sample."""

    sample: StoredSample
    choice: Choice
    copy: int
    """How often the sample came before in this epoch."""
    texts: ObjectTexts | None
    """Its objects' texts; None: those in its JSON."""


class PairDecoder(Decoder[PairPlan]):
    """Chooses objects of samples, and decodes them in two frames.

    Args:
        fields: of frames 1 and 2.
        recipe: of the shards.
        batch_size: most samples of a batch.
        objects: most objects per sample.
        need: what an object must have to be chosen.
        seed: of the order of a sample's objects.
        normalise, pin, buffers: see `Decoder`.

    Raises:
        UserError: the batches would not fit this machine's memory.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        recipe: Recipe,
        batch_size: int,
        objects: int,
        need: Need | None,
        seed: int,
        normalise: Normalise,
        pin: bool,
        buffers: int,
    ) -> None:
        super().__init__(recipe, normalise, pin, buffers)
        self._fields = {str(field): field for field in fields}
        self._batch_size = batch_size
        self._objects = objects
        self._need = need
        self._salt = salts_after(seed)
        self._rows = {name: self._row(field.name, objects) for name, field in self._fields.items()}
        self._numbers = lru_cache(maxsize=4096)(self._numbers_of)
        check_memory(buffers * nbytes(self._rows, dict.fromkeys(self._rows, batch_size)))

    def new_buffers(self) -> Buffers:
        buffers = Buffers(self._rows, self._pin, self._buffers)
        buffers.make_room(dict.fromkeys(self._rows, self._batch_size))
        buffers.parts = tuple(self._part(field, buffers.arrays[name]) for name, field in self._fields.items())
        return buffers

    def _part(self, field: Field, tensor: Array) -> Job:
        """Return the job of a tensor, see `compiled.left_of_rows`."""
        if field.is_picture:
            return compiled.PICTURE, None, tensor, *self._pictures[field.name]
        if field.name == "prompt_masks":
            return compiled.CELLS, None, tensor, 0, None, None
        return codec.mask_job(b"", 0, tensor, self._as_stored)

    def plan(self, visit: SampleVisit) -> PairPlan:
        """Choose objects and frames.

        Raises:
            BadShard: the sample cannot be decoded, or has no object that has what is needed.
        """
        sample = visit.sample
        salt = self._salt(sample.key)
        if not self._need:
            among = range(sample.objects) if visit.chosen is None else visit.chosen
            taken = take_in_turn(shuffled(among, salt), self._objects, visit.number)
            choice = Choice([n for n, _ in taken], [turn for _, turn in taken], (0, min(1, sample.frames - 1)))
            return PairPlan(sample, choice, visit.copy, visit.texts)
        cells = [self.decode(sample, stored_field("prompt_masks", f + 1)) for f in range(sample.frames)]
        visible = np.stack([mask.any(axis=(1, 2)) for mask in cells])
        able: list[int] = np.flatnonzero(visible.any(axis=0)).tolist()
        if visit.chosen is not None:
            able = sorted({*able} & {*visit.chosen})
        if self._need == "texts":
            able = [n for n in able if _texts_of(sample, n, visit.texts)]
        if not able:
            raise BadShard("index and sample differ", where=sample.where, wanted=NEEDED[self._need], do=check_set())
        chosen = choose(visible, able, self._objects, salt, visit.number)
        return PairPlan(sample, chosen, visit.copy, visit.texts)

    def counts(self, plans: Sequence[PairPlan]) -> dict[str, int]:
        return {"objects": sum(len(plan.choice.objects) for plan in plans)}

    def places(self, plans: Sequence[PairPlan]) -> list[Place]:
        return [(row,) for row in range(len(plans))]

    def fill(self, buffers: Buffers, places: Sequence[Place], plans: Sequence[PairPlan]) -> None:
        rows: list[Row] = []
        for (row,), (sample, choice, *_) in zip(places, plans, strict=True):
            try:
                numbers, cells = self._numbers(sample.alike, choice.frames)
            except BadShard as error:
                sample.compare_now()  # changed bytes are the better reason to give
                raise error.at(f"{sample.where}.{error.where}") from None
            if sample.compare:
                numbers = self._compared(buffers, row, sample, numbers)
            header = None
            if cells is not None:
                header = codec.header_of_prompts(len(sample.stored[cells]), self._recipe.grid)
            rows.append((row, choice.objects, header, sample.stored, numbers))
        for at, part in compiled.left_of_rows(buffers.parts, rows):
            row, objects, _, _, numbers = rows[at]
            sample = plans[at].sample
            out = buffers.parts[part][2][row]
            field = sample.alike.fields[numbers[part]]
            self.decode(sample, field, objects, out if field.is_picture else out[: len(objects)])

    def _compared(self, buffers: Buffers, row: int, sample: StoredSample, numbers: Sequence[int]) -> tuple[int, ...]:
        """Compare a sample's bytes while copying its raw pictures; return the numbers of the others, -1 for these.

        Raises:
            BadShard: the bytes have changed, or are not a picture.
        """
        left = []
        copies: list[tuple[Array, Array]] = []
        for number, part, field in zip(numbers, buffers.parts, self._fields.values(), strict=True):
            _, _, array, side, _, table = part
            if number >= 0 and field.is_picture and table is None and codec.is_raw(sample.stored[number]):
                try:
                    copies.append((array[row], codec.read_picture(sample.stored[number], side)))
                except BadShard as error:
                    sample.compare_now()  # changed bytes are the better reason to give
                    raise error.at(f"{sample.where}.{sample.alike.fields[number]}") from None
                number = -1
            left.append(number)
        sample.compare_now(copies)
        return tuple(left)

    def _numbers_of(self, alike: Alike, frames: tuple[int, int]) -> tuple[tuple[int, ...], int | None]:
        """Return which member each tensor is decoded of where these frames, from 0, are chosen; -1: it is not filled.

        Also the first that holds cells. Where the frames are one, frame 2's `pixel_values` are not filled if frame 1's
        are there.
        """
        is_twice = frames[0] == frames[1] and "pixel_values1" in self._fields
        numbers = [
            -1
            if is_twice and name == "pixel_values2"
            else number_of(alike, stored_field(field.name, frames[(field.frame or 1) - 1] + 1))
            for name, field in self._fields.items()
        ]
        cells = [number for number in numbers if number >= 0 and alike.fields[number].name == "prompt_masks"]
        return tuple(numbers), cells[0] if cells else None

    def batch(self, buffers: Buffers, plans: Sequence[PairPlan], **known: Any) -> PairBatch:
        counts = [len(plan.choice.objects) for plan in plans]
        if min(counts) == self._objects:
            frames = buffers.views.get(len(counts)) or self._frames(buffers, counts)
            buffers.views[len(counts)] = frames
        else:
            frames = self._frames(buffers, counts)
        chosen = [plan.choice.frames for plan in plans]
        return PairBatch(
            frames=frames,
            # Through numpy: torch takes three times as long to read a list.
            image_of_object=torch.from_numpy(np.arange(len(counts)).repeat(counts)),
            paired=torch.from_numpy(np.array([first != second for first, second in chosen], np.bool_)),
            keys=[plan.sample.key for plan in plans],
            texts=Lazy(lambda: [texts for plan in plans for texts in _texts_of_chosen(plan)]),
            objects=[number for plan in plans for number in plan.choice.objects],
            recipe=self._recipe,
            meta=Lazy(lambda: [plan.sample.meta for plan in plans]),
            frame_numbers=[(first + 1, second + 1) for first, second in chosen],
            turns=[turn for plan in plans for turn in plan.choice.turns],
            copies=[plan.copy for plan in plans],
            **known,
        )

    def _frames(self, buffers: Buffers, counts: Sequence[int]) -> tuple[Frame, Frame]:
        """Return the frames of samples with so many objects."""
        frames: tuple[dict[str, torch.Tensor], ...] = ({}, {})
        for name, field in self._fields.items():
            tensor = buffers.tensors[name][: len(counts)]
            if field.name in _OF_OBJECTS:
                if min(counts) == self._objects:
                    tensor = tensor.flatten(0, 1)
                else:
                    tensor = tensor[torch.tensor([[k < count for k in range(self._objects)] for count in counts])]
            frames[(field.frame or 1) - 1][field.name] = tensor
        return Frame(**frames[0]), Frame(**frames[1])


def _texts_of_chosen(plan: PairPlan) -> list[list[str]]:
    """The texts of each chosen object that say something."""
    return [_texts_of(plan.sample, number, plan.texts) for number in plan.choice.objects]


def _texts_of(sample: StoredSample, number: int, texts: ObjectTexts | None) -> list[str]:
    item = sample.meta["objects"][number]
    return usable_texts(item) if texts is None else texts.of(number, item)
