"""Samples into batches: the objects and frames that a visit takes, decoded into reused buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any, Literal

import numpy as np
import torch

from shards import codec
from shards.errors import BadShard
from shards.format import Field
from shards.program import check_set
from shards.reader import Array, StoredSample, decode_field
from shards.recipe import Recipe
from shards.sample import usable_texts
from trainer.data.batch import Frame, PairBatch
from trainer.data.choice import Choice, choose, shuffled, take_in_turn

Need = Literal["texts", "regions"]
"""What a chosen object must have: a prompt cell in a frame, and for "texts" a text too. Both are index columns."""
NEEDED = {"texts": "an object with a text", "regions": "an object with a prompt cell"}
Normalise = Literal["host", "device"]
"""Where `pixel_values` become float32 and `masks` a byte per pixel: in the loader, or in `Batch.to` on the device."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A sample that an epoch visits, and what the visit takes of it."""

    sample: StoredSample
    choice: Choice
    copy: int
    """How often the sample came before in this epoch."""


_field = lru_cache(Field)


def _stored(sample: StoredSample, field: Field) -> Field:
    """Return `field` as a sample stores it: without the frame's number if there is only one frame."""
    return _field(field.name, None) if sample.frames == 1 else field


class Lazy(Sequence[Any]):
    """A list that is made when it is first read."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        self._make = make
        self._made: list[Any] | None = None

    def _list(self) -> list[Any]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, at: Any) -> Any:
        return self._list()[at]

    def __len__(self) -> int:
        return len(self._list())

    def __eq__(self, other: object) -> bool:
        return self._list() == (other._list() if isinstance(other, Lazy) else other)

    def __repr__(self) -> str:
        return repr(self._list())


class BatchDecoder:
    """Chooses objects of samples and decodes them into the rows of a batch.

    Args:
        fields: of frames 1 and 2.
        recipe: of the shards.
        objects: most objects per sample.
        need: what an object must have to be chosen.
        normalise: "device" leaves `pixel_values` and `masks` as they are stored, for `Batch.to`.
    """

    def __init__(
        self, fields: Sequence[Field], recipe: Recipe, objects: int, need: Need | None, normalise: Normalise
    ) -> None:
        self._fields = [*fields]
        self._recipe = recipe
        self._objects = objects
        self._need = need
        self._as_stored = normalise == "device"
        self._first = Field("pixel_values", 1) in self._fields

    def buffers(self, batch_size: int, pin: bool) -> Buffers:
        """Allocate one batch's tensors; those of objects are (B, objects, ...)."""
        tensors = {}
        for field in self._fields:
            shape, dtype = self._layout(field, batch_size)
            # numpy allocates huge pages, to which writing is a tenth faster.
            empty = torch.from_numpy(np.empty(shape, dtype))
            tensors[str(field)] = torch.empty_like(empty, pin_memory=True) if pin else empty
        return Buffers(tensors)

    def nbytes(self, batch_size: int) -> int:
        """Bytes of one batch's tensors."""
        layouts = (self._layout(field, batch_size) for field in self._fields)
        return sum(prod(shape) * dtype.itemsize for shape, dtype in layouts)

    def _layout(self, field: Field, batch_size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        shape = (batch_size, *field.shape(self._recipe, self._objects))
        dtype = field.dtype
        if self._as_stored and field.name == "pixel_values":
            return shape, np.dtype(np.uint8)
        if self._as_stored and field.name == "masks":
            return (*shape[:-1], shape[-1] // 8), np.dtype(np.uint8)
        return shape, dtype

    def choose(self, sample: StoredSample, salt: int, visit: int) -> Choice:
        """Choose what visit number `visit` to a sample takes of it; `salt` is the sample's.

        Raises:
            BadShard: the sample cannot be decoded, or has no object that has what is needed.
        """
        if not self._need:
            taken = take_in_turn(shuffled(range(sample.objects), salt), self._objects, visit)
            return Choice([n for n, _ in taken], [turn for _, turn in taken], (0, min(1, sample.frames - 1)))
        cells = [self._decoded(sample, _field("prompt_masks", f + 1)) for f in range(sample.frames)]
        visible = np.stack([mask.any(axis=(1, 2)) for mask in cells])
        able: list[int] = np.flatnonzero(visible.any(axis=0)).tolist()
        if self._need == "texts":
            able = [n for n in able if usable_texts(sample.meta["objects"][n])]
        if not able:
            raise BadShard("index and sample differ", where=sample.where, wanted=NEEDED[self._need], do=check_set())
        return choose(visible, able, self._objects, salt, visit)

    def fill(self, buffers: Buffers, row: int, visit: Visit, later: list[Callable[[], object]]) -> Visit:
        """Decode what a visit takes into row `row`; the pictures are complete when `later` has run.

        Between two copies of megabytes Python finds nothing of its own in the processor's cache, and takes three times
        as long: so the Python for several rows comes first, then their copies.

        Returns:
            The visit with its sample detached: a batch, which may live long, keeps no tar mapped.

        Raises:
            BadShard: the sample cannot be decoded. So may `later`, which compares its bytes where that is to be done.
        """
        sample = visit.sample
        choice = visit.choice
        copies: list[tuple[Array, Array]] = []
        first = len(later)

        def decode_picture(field: Field, out: Array) -> None:
            stored = _stored(sample, field)
            if (self._as_stored or field.name != "pixel_values") and codec.is_raw(sample.members[stored]):
                try:
                    copies.append((out, codec.read_picture(sample.members[stored], out.shape[1])))
                except BadShard as error:
                    raise error.at(f"{sample.where}.{stored}") from None
            else:
                later.append(partial(self._decoded, sample, field, None, out))

        objects = choice.objects
        chosen = choice.frames
        for field, array in zip(self._fields, buffers.arrays, strict=True):
            target = array[row]
            frame = chosen[(field.frame or 1) - 1]
            stored = _field(field.name, frame + 1)
            if field.name in ("masks", "prompt_masks"):
                self._decoded(sample, stored, objects, target[: len(objects)])
            elif field.name != "pixel_values" or field.frame == 1 or chosen[0] != chosen[1] or not self._first:
                decode_picture(stored, target)
        if sample.compare:
            later.insert(first, partial(sample.compare, copies))
        else:
            later += [partial(np.copyto, *pair) for pair in copies]
        return Visit(sample.detached(), choice, visit.copy)

    def _decoded(
        self, sample: StoredSample, field: Field, objects: Sequence[int] | None = None, out: Array | None = None
    ) -> Array:
        stored = _stored(sample, field)
        try:
            return decode_field(stored, sample.members[stored], self._recipe, objects, out, self._as_stored)
        except BadShard as error:
            raise error.at(f"{sample.where}.{stored}") from None

    def batch(self, buffers: Buffers, visits: Sequence[Visit], **known: Any) -> PairBatch:
        """The batch whose first rows `visits` were decoded into; `known` holds other fields of it."""
        counts = [len(visit.choice.objects) for visit in visits]
        full = all(count == self._objects for count in counts)
        frames: tuple[dict[str, torch.Tensor], ...] = ({}, {})
        for field in self._fields:
            tensor = buffers.tensors[str(field)][: len(visits)]
            if field.name in ("masks", "prompt_masks"):
                taken = [[k < count for k in range(self._objects)] for count in counts]
                tensor = tensor.flatten(0, 1) if full else tensor[torch.tensor(taken)]
            frames[(field.frame or 1) - 1][field.name] = tensor
        chosen = [visit.choice.frames for visit in visits]
        return PairBatch(
            frames=(Frame(**frames[0]), Frame(**frames[1])),
            image_of_object=torch.tensor([i for i, count in enumerate(counts) for _ in range(count)]),
            paired=torch.tensor([first != second for first, second in chosen]),
            keys=[visit.sample.key for visit in visits],
            texts=Lazy(lambda: [texts for visit in visits for texts in _texts_of_chosen(visit)]),
            objects=[number for visit in visits for number in visit.choice.objects],
            recipe=self._recipe,
            meta=Lazy(lambda: [visit.sample.meta for visit in visits]),
            frame_numbers=[(first + 1, second + 1) for first, second in chosen],
            turns=[turn for visit in visits for turn in visit.choice.turns],
            copies=[visit.copy for visit in visits],
            **known,
        )


def _texts_of_chosen(visit: Visit) -> list[list[str]]:
    """The texts of each chosen object that say something."""
    return [usable_texts(visit.sample.meta["objects"][number]) for number in visit.choice.objects]


class Buffers:
    """Memory of one batch: `tensors` by field, and in the same order `arrays` that share their memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.arrays = [tensor.numpy() for tensor in tensors.values()]


class Ring:
    """The buffers of batches that are decoded ahead, used in turn."""

    def __init__(self, buffers: Sequence[Buffers]) -> None:
        self._buffers = buffers
        self.turn = 0

    def next(self) -> Buffers:
        self.turn += 1
        return self._buffers[(self.turn - 1) % len(self._buffers)]
