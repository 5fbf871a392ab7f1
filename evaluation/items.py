"""Read shard sets for evaluation as pairs of frames: every object of every sample once.

`trainer.data.loader.Loader` chooses objects, drops what does not fill a batch, and gives every process as many batches.
Here nothing is chosen or dropped. Of several frames, the first two that show an object are its frames 1 and 2.

Samples are split into fixed groups of `size`; process r of W takes groups r, r + W, ... A batch holds items of one
group alone, so batches do not depend on the number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shards.ahead import run_ahead
from shards.errors import BadShard
from shards.format import Field, FieldName
from shards.reader import ShardSet, decode_field
from shards.sample import usable_texts
from trainer.data.batch import Frame, PairBatch
from trainer.data.decoding import Need
from trainer.data.selection import Selection
from trainer.objectives import load_objective

NO_OBJECT = "samples without an object"
NO_TEXT = "objects without a text"
NO_REGION = "objects without a prompt cell"
GROUPS_AHEAD = 2
"""Groups that are decoded while one is in use."""
THREADS = 2

SampleRef = tuple[ShardSet, int]
"""A set, and the position of a sample in it."""
Selections = Mapping[ShardSet, Selection]
"""The objects that are evaluated and their texts, by set; all of a set that is not named, with the source's texts."""
EVERYTHING: Selections = MappingProxyType({})
FramePair = tuple[int, int]
"""Frames of a sample, counted from 0, that are frame 1 and frame 2 of a batch."""


class Reads(Protocol):
    """Choice of what is read of a sample. An objective is such a class; its name may stand in place of it."""

    judging_fields: ClassVar[tuple[str, ...]]
    """Fields of a batch."""
    needs: ClassVar[Need | None]
    """"texts": an object is an item for each of its texts. Else it is one, if a frame shows it or no cells are read."""
    swaps_captions: ClassVar[bool]
    """Whether an item needs another one in its batch."""


@dataclass(eq=False)
class DecodedSample:
    """A sample with N objects in F frames, and its items."""

    shards: ShardSet
    key: str
    meta: dict[str, Any]
    members: dict[Field, memoryview]
    decoded: dict[Field, NDArray[Any]] = field(default_factory=dict)
    """Pictures (3, S, S) and `prompt_masks` (N, 16, 16). Masks are decoded when a batch needs them: there may be a
    hundred, of a megabyte each."""
    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of objects that cannot be evaluated, by reason."""

    def decode(self, name: FieldName, frame: int, objects: Sequence[int] | None = None) -> NDArray[Any]:
        """Decode a field of a frame, counted from 0; only of `objects` if they are given."""
        stored = Field(name, None if len(self.meta["frames"]) == 1 else frame + 1)
        if objects is None and stored in self.decoded:
            return self.decoded[stored]
        try:
            array = decode_field(stored, self.members[stored], self.shards.recipe, objects)
        except BadShard as error:
            raise error.at(f"{self.shards.folder}: {self.key}.{stored}") from None
        if objects is None:
            self.decoded[stored] = array
        return array


@dataclass(frozen=True)
class Item:
    """One question about an object."""

    sample: DecodedSample
    frames: FramePair
    number: int
    """Number of the object in its sample, from 0."""
    text: str | None
    """None if the objective asks about no text."""


def group_samples(samples: Sequence[SampleRef], size: int) -> list[Sequence[SampleRef]]:
    """Split the samples of a set into groups of `size`, at least 2.

    A last sample that would be alone joins the group before: alone it would have no caption to be swapped with.
    """
    size = max(size, 2)
    ends = [*range(size, len(samples) - 1, size), len(samples)]
    return [samples[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True) if end]


def read_groups(
    groups: Iterable[Sequence[SampleRef]], objective: str | type[Reads], selections: Selections = EVERYTHING
) -> Iterator[list[DecodedSample]]:
    """Yield the samples of one group after the other, decoded ahead by threads.

    Args:
        groups: the groups of this process.
        objective: a name in `trainer.objectives.OBJECTIVES`, or a class; it says which fields are decoded.
        selections: the objects that are asked about.

    Raises:
        BadShard: a sample cannot be read.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")
    try:
        calls = ([partial(_decode_sample, *sample, objective, selections) for sample in group] for group in groups)
        yield from run_ahead(pool, calls, GROUPS_AHEAD)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_batches(
    group: Sequence[DecodedSample], objective: str | type[Reads], most: int
) -> Iterator[tuple[PairBatch, list[str]]]:
    """Yield the items of a group as batches for `Objective.judge`, each with the sources of its items.

    A batch has at most `most` items; if the objective swaps captions it may have two more. The caption-swap gap needs
    another object, of the same sample if possible: so no item is alone in its batch, nor apart from all others of its
    sample.
    """
    least = 2 if _reads(objective).swaps_captions else 1
    packed: list[list[Item]] = []
    for sample in group:
        for part in _even_parts(sample.items, most, least):
            if packed and (len(packed[-1]) < least or len(packed[-1]) + len(part) <= most):
                packed[-1] += part
            elif part:
                packed.append(part)
    if len(packed) > 1 and len(packed[-1]) < least:
        last = packed.pop()
        packed[-1] += last
    yield from (_batch(items, objective) for items in packed)


def _even_parts(items: Sequence[Item], most: int, least: int) -> Iterator[list[Item]]:
    """Split items evenly into parts of at most `most`, or of more where a part would have fewer than `least`."""
    count = max(1, min(-(-len(items) // most), len(items) // least))
    rest = iter(items)
    for part in range(count):
        yield list(islice(rest, len(items) // count + (part < len(items) % count)))


def _decode_sample(
    shards: ShardSet, position: int, objective: str | type[Reads], selections: Selections
) -> DecodedSample:
    """Decode a sample's pictures and prompt cells, and list its items."""
    chosen = _reads(objective)
    sample = DecodedSample(shards, shards.key(position), *shards.sample(position))
    if not sample.meta["objects"]:
        sample.left_out[NO_OBJECT] += 1
        return sample
    frames = range(len(sample.meta["frames"]))
    visible = np.stack([sample.decode("prompt_masks", frame).any(axis=(1, 2)) for frame in frames])
    selection = selections.get(shards)
    asked = None if selection is None else selection.of(position)
    joined = None if selection is None else selection.texts_of(position)
    for number in range(len(sample.meta["objects"])) if asked is None else asked:
        described = sample.meta["objects"][number]
        texts: list[str | None] = [None]
        if chosen.needs == "texts":
            texts = [*(usable_texts(described) if joined is None else joined.of(number, described))]
        showing = np.flatnonzero(visible[:, number]).tolist()  # frames that show the object
        if not texts:
            sample.left_out[NO_TEXT] += 1
        elif not showing and "prompt_masks1" in chosen.judging_fields:
            sample.left_out[NO_REGION] += 1
        else:
            first, second = (showing * 2 if len(showing) == 1 else showing or [0, 0])[:2]
            sample.items += [Item(sample, (first, second), number, text) for text in texts]
    for name, frame in {_stored_field(name, item.frames) for name in chosen.judging_fields for item in sample.items}:
        if name != "masks":
            sample.decode(name, frame)
    return sample


def _reads(objective: str | type[Reads]) -> type[Reads]:
    return load_objective(objective) if isinstance(objective, str) else objective


def _stored_field(name: str, frames: FramePair) -> tuple[FieldName, int]:
    """Return the field of a batch's field such as "masks2", and the sample's frame, from 0, that it is read from."""
    in_batch = Field.parse(name)
    return in_batch.name, frames[(in_batch.frame or 1) - 1]


def _batch(items: Sequence[Item], objective: str | type[Reads]) -> tuple[PairBatch, list[str]]:
    """Stack the fields of items as the loader does; return the batch, and the source of each item."""
    views = list(dict.fromkeys((item.sample, item.frames) for item in items))
    frames: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for name in _reads(objective).judging_fields:
        if "masks" in name:
            values = [item.sample.decode(*_stored_field(name, item.frames), [item.number])[0] for item in items]
        else:
            values = [sample.decode(*_stored_field(name, shown)) for sample, shown in views]
        in_batch = Field.parse(name)
        frames[(in_batch.frame or 1) - 1][in_batch.name] = torch.from_numpy(np.stack(values))
    batch = PairBatch(
        frames=(Frame(**frames[0]), Frame(**frames[1])),
        image_of_object=torch.tensor([views.index((item.sample, item.frames)) for item in items]),
        paired=torch.tensor([first != second for _, (first, second) in views]),
        keys=[sample.key for sample, _ in views],
        texts=[[] if item.text is None else [item.text] for item in items],
        objects=[item.number for item in items],
        recipe=views[0][0].shards.recipe,
        meta=[sample.meta for sample, _ in views],
        frame_numbers=[(first + 1, second + 1) for _, (first, second) in views],
        turns=[0] * len(items),
        copies=[0] * len(views),
    )
    return batch, [item.sample.shards.manifest.source for item in items]
