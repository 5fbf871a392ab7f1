"""Samples into batches: what a visit takes is planned, then decoded into reused buffers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from random import Random
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from shards import codec, compiled
from shards.compiled import Job
from shards.errors import BadShard, UserError
from shards.format import Field, FieldName
from shards.reader import Alike, Array, StoredSample, decode_field
from shards.recipe import Recipe
from trainer.data.batch import Batch
from trainer.data.copying import Event
from trainer.data.object_texts import ObjectTexts

Need = Literal["texts", "regions", "letters"]
"""What a sample must have, each a column of the index. "regions": an object with a prompt cell in a frame; "texts": one
that has a text too; "letters": a text of any kind."""
NEEDED: dict[Need, str] = {
    "texts": "an object with a text",
    "regions": "an object with a prompt cell",
    "letters": "a text",
}
Normalise = Literal["host", "device"]
"""Where `pixel_values` become float32 and `masks` a byte per pixel: in the loader, or in `Batch.to` on the device."""
Layout = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and dtype."""


class SampleVisit(NamedTuple):
    """A visit of an epoch to a stored sample."""

    sample: StoredSample
    source: str
    """The sample's source."""
    epoch: int
    number: int
    """How often the sample was visited before, in this epoch and those before it."""
    copy: int
    """How often the sample came before in this epoch."""
    other_phrase: Callable[[Random], str | None]
    """Draws a phrase of another sample of the source; None where there is none."""
    chosen: Sequence[int] | None = None
    """Numbers of the objects that count, ascending; None: all."""
    texts: ObjectTexts | None = None
    """Their texts; None: those in the sample's JSON."""


class Plan(Protocol):
    """What a visit takes of its sample."""

    @property
    def sample(self) -> StoredSample:
        """The sample."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)
Place = tuple[int, ...]
"""Where in a batch's tensors a sample's parts begin."""
stored_field = lru_cache(Field)


class Decoder(ABC, Generic[AnyPlan]):
    """Plans what a batch takes of its samples, and decodes it into the batch's buffers.

    A batch is planned as a whole before any of it is decoded, because only its plans tell how much memory it takes and
    where in it each sample lies. Any number of threads may plan, and fill buffers, at a time.

    Args:
        recipe: of the shards.
        normalise: "device" leaves `pixel_values` and `masks` as they are stored, for `Batch.to`.
        pin: use page-locked memory.
        buffers: number of batches that have memory at a time.
    """

    def __init__(self, recipe: Recipe, normalise: Normalise, pin: bool, buffers: int) -> None:
        self._recipe = recipe
        self._as_stored = normalise == "device"
        self._pin = pin
        self._buffers = buffers
        small = codec.normalised_rest(recipe.vision_size, recipe.mean, recipe.std)
        self._pictures = {
            "pixel_values": codec.picture_rest(recipe.vision_size) if self._as_stored else small,
            "g_pixel_values": codec.picture_rest(recipe.sam_size),
        }
        """Last parts of a picture's job, after its data and place, by the field's name."""

    @abstractmethod
    def plan(self, visit: SampleVisit) -> AnyPlan:
        """Choose what a visit takes; raises `BadShard` where the sample cannot be decoded."""

    @abstractmethod
    def counts(self, plans: Sequence[AnyPlan]) -> Mapping[str, int]:
        """Return `Batch.counts` of the batch of these plans."""

    @abstractmethod
    def new_buffers(self) -> Buffers:
        """Return memory for one batch."""

    def rows(self, plans: Sequence[AnyPlan]) -> Mapping[str, int]:
        """Return how many rows of each tensor the batch of these plans takes; {} where all batches take as many."""
        return {}

    @abstractmethod
    def places(self, plans: Sequence[AnyPlan]) -> list[Place]:
        """Return the place of each plan's sample in a batch."""

    @abstractmethod
    def fill(self, buffers: Buffers, places: Sequence[Place], plans: Sequence[AnyPlan]) -> None:
        """Decode what plans take to their places.

        The Python for all samples comes first, then one call decodes them without the interpreter's lock.

        Raises:
            BadShard: a sample cannot be decoded, or its bytes have changed.
        """

    @abstractmethod
    def batch(self, buffers: Buffers, plans: Sequence[AnyPlan], **known: Any) -> Batch:
        """Return the batch that the plans were decoded into; `known` holds other fields of it."""

    def _row(self, name: FieldName, objects: int | None = None) -> Layout:
        """Return the layout of one row of a field's tensor: a picture, the masks of `objects` objects, or one mask."""
        field = stored_field(name, None)
        shape = field.shape(self._recipe, objects or 1)
        if objects is None and not field.is_picture:
            shape = shape[1:]
        if self._as_stored and name == "pixel_values":
            return shape, np.dtype(np.uint8)
        if self._as_stored and name == "masks":
            return (*shape[:-1], shape[-1] // 8), np.dtype(np.uint8)
        return shape, field.dtype

    def decode(
        self, sample: StoredSample, field: Field, objects: Sequence[int] | None = None, out: Array | None = None
    ) -> Array:
        """Decode a field of a sample, masks of `objects` alone; `field` has the frame's number."""
        try:
            return decode_field(field, _member(sample, field), self._recipe, objects, out, self._as_stored)
        except BadShard as error:
            raise error.at(f"{sample.where}.{_stored(sample.alike, field)}") from None

    def picture(self, sample: StoredSample, field: Field, outs: Sequence[Array], work: Work) -> None:
        """Let `work` decode a picture to each of `outs`."""
        work.add((compiled.PICTURE, _member(sample, field), outs[0], *self._pictures[field.name]), sample, field)
        for out in outs[1:]:
            work.copy(outs[0], out)

    def union(self, sample: StoredSample, field: Field, objects: Sequence[int], out: Array, work: Work) -> None:
        """Let `work` decode the union of objects' masks, of at least one."""
        data = _member(sample, field)
        for turn, number in enumerate(objects):
            work.add(codec.mask_job(data, number, out, self._as_stored, united=turn > 0), sample, field)


def _stored(alike: Alike, field: Field) -> Field:
    """Return `field` as samples store it: without the frame's number if there is only one frame."""
    return stored_field(field.name, None) if alike.frames == 1 else field


def number_of(alike: Alike, field: Field) -> int:
    """Return the number of the member that holds a field, which has the frame's number.

    Raises:
        BadShard: there is none. Its place is the member's name.
    """
    stored = _stored(alike, field)
    number = alike.at.get(stored)
    if number is None:
        raise BadShard("a sample without this field", where=str(stored), wanted=str(stored))
    return number


def _member(sample: StoredSample, field: Field) -> memoryview:
    try:
        return sample.stored[number_of(sample.alike, field)]
    except BadShard as error:
        raise error.at(f"{sample.where}.{error.where}") from None


class Work:
    """What a run of samples still has to decode: jobs of `shards.compiled`, which are done together.

    Args:
        decoder: does in Python what is left undone.
    """

    def __init__(self, decoder: Decoder[Any]) -> None:
        self._decoder = decoder
        self._jobs: list[Any] = []
        """Jobs, each followed by its sample and field."""
        self._comparisons: list[tuple[StoredSample, list[tuple[Array, Array]]]] = []
        """Samples whose bytes are to be compared, with (target, source) pairs that are copied on the way."""

    def begin(self, sample: StoredSample) -> None:
        """Begin with the jobs of a sample."""
        if sample.compare:
            self._comparisons.append((sample, []))

    def add(self, job: Job, sample: StoredSample, field: Field) -> None:
        """Add a job that decodes a field of the sample that was begun last."""
        if sample.compare is not None and self._is_copied_while_comparing(job, sample, field):
            return
        self._jobs.append((*job, sample, field))

    def _is_copied_while_comparing(self, job: Job, sample: StoredSample, field: Field) -> bool:
        """Whether the job copies a raw picture; the comparison of the sample's bytes then does it."""
        kind, data, out, size, _, table = job
        if kind != compiled.PICTURE or table is not None or not codec.is_raw(data):
            return False
        try:
            self._comparisons[-1][1].append((out, codec.read_picture(data, size)))
        except BadShard as error:
            raise error.at(f"{sample.where}.{_stored(sample.alike, field)}") from None
        return True

    def copy(self, source: Array, out: Array) -> None:
        """Copy `source` to `out` when the jobs before this one are done."""
        self._jobs.append((compiled.COPY, source, out, 0, None, None, None, None))

    def do(self) -> None:
        """Compare the bytes of samples where that is to be done, and do all jobs.

        Raises:
            BadShard: bytes have changed, or cannot be decoded.
        """
        for sample, copies in self._comparisons:
            sample.compare_now(copies)
        left = {*compiled.left_undone(self._jobs)}
        for number in range(min(left, default=len(self._jobs)), len(self._jobs)):
            kind, _, out, position, *_, sample, field = job = self._jobs[number]
            if kind in (compiled.PACKED_UNION, compiled.MASK_UNION):  # what it is united with has just been decoded
                np.bitwise_or(out, self._decoder.decode(sample, field, [position])[0], out=out)
            elif kind == compiled.COPY:
                np.copyto(out, job[1])
            elif number in left and kind == compiled.PICTURE:
                self._decoder.decode(sample, field, None, out)
            elif number in left:
                self._decoder.decode(sample, field, [position], out[None])


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


class Buffers:
    """Memory of one batch, which grows when a batch needs more.

    Args:
        rows: layout of one row of each tensor, by name.
        pin: use page-locked memory.
        together: number of batches that have memory at a time.
    """

    def __init__(self, rows: Mapping[str, Layout], pin: bool, together: int) -> None:
        self._rows = rows
        self._pin = pin
        self._together = together
        self.tensors: dict[str, torch.Tensor] = {}
        """By name, each with as many rows as there is room for."""
        self.arrays: dict[str, Array] = {}
        """The same memory as arrays."""
        self.parts: tuple[Job, ...] = ()
        """Jobs that decode a row of each tensor, see `compiled.left_of_rows`; () where rows are decoded singly."""
        self.views: dict[int, Any] = {}
        """Views of the memory that full batches hand over, by number of samples: they are the same each time."""
        self.copied: Event | None = None
        """After the copies that read this memory; None where none is queued."""

    def wait_for_copies(self) -> None:
        """Wait until the memory may be written again."""
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None

    def has_room(self, counts: Mapping[str, int]) -> bool:
        """Return whether there is room for so many rows of each tensor."""
        return all(name in self.arrays and count <= len(self.arrays[name]) for name, count in counts.items())

    def make_room(self, counts: Mapping[str, int]) -> None:
        """Make room for so many rows of each tensor. What a tensor that has to grow held is lost to it.

        For the main thread alone: page-locked memory belongs to the thread's GPU, which in others is the first one.

        Raises:
            UserError: all buffers together would not fit this machine's memory.
        """
        held = {name: len(array) for name, array in self.arrays.items()}
        grown = {name: max(count, held.get(name, 0) * 5 // 4) for name, count in counts.items()}
        grown = {name: count for name, count in grown.items() if counts[name] > held.get(name, -1)}
        if not grown:
            return
        check_memory(self._together * nbytes(self._rows, held | grown))
        self.views.clear()
        for name, count in grown.items():
            shape, dtype = self._rows[name]
            # numpy allocates huge pages, to which writing is a tenth faster.
            empty = torch.from_numpy(np.empty((count, *shape), dtype))
            self.tensors[name] = torch.empty_like(empty, pin_memory=True) if self._pin else empty
            self.arrays[name] = self.tensors[name].numpy()


def nbytes(rows: Mapping[str, Layout], counts: Mapping[str, int]) -> int:
    """Return the bytes of tensors with so many rows."""
    return sum(counts.get(name, 0) * prod(shape) * dtype.itemsize for name, (shape, dtype) in rows.items())


def check_memory(needed: int) -> None:
    """Raise `UserError` where batches of `needed` bytes in all do not fit this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        required = f"{needed / 1e9:,.1f} GB"
        expected = f"less than this machine's {memory / 1e9:,.1f} GB"
        do = "lower data.prefetch, batch_size, data.objects_per_sample or data.frames"
        raise UserError("batches take more memory than there is", where="data", met=required, wanted=expected, do=do)


class Ring:
    """The buffers of batches that are decoded ahead, used in turn."""

    def __init__(self, buffers: Sequence[Buffers]) -> None:
        self._buffers = buffers
        self.turn = 0

    def next(self) -> Buffers:
        """Return the buffers that were returned longest ago, when nothing reads them any more."""
        self.turn += 1
        buffers = self._buffers[(self.turn - 1) % len(self._buffers)]
        buffers.wait_for_copies()
        return buffers
