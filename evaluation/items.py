"""Shard sets read whole for evaluation: every object of every sample once, in batches that no process decides about.

`trainer.data.loader.Loader` chooses objects, drops what does not fill a batch, gives processes as many batches. Here
nothing is chosen or dropped; of several frames, the first two that show an object serve for it. Samples are cut into
groups of so many, and each process takes every so-many-th group. Batches are made of one group alone, so they are the
same however many processes there are.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import BadShard
from shards.format import Field, FieldName
from shards.reader import ShardSet, decode_field
from shards.sample import usable_texts
from trainer.data.batch import Batch, Frame
from trainer.objectives import load_objective

NO_TEXT, NO_REGION = "objects without a text", "objects without a prompt cell"
_AHEAD = 2  # groups that are decoded while one is in use
_THREADS = 2

Place = tuple[ShardSet, int]
"""A sample: its set, and its position there."""
Frames = tuple[int, int]
"""Which frames of a sample, from 0, serve as frame 1 and frame 2 of a batch."""


@dataclass(eq=False)
class Whole:
    """A sample with N objects in F frames."""

    shards: ShardSet
    key: str
    meta: dict[str, Any]
    members: dict[Field, memoryview]
    decoded: dict[Field, NDArray[Any]] = field(default_factory=dict)
    """Pictures (3, S, S) and `prompt_masks` (N, 16, 16). Masks are decoded when their turn comes: there may be a
    hundred, of a megabyte each."""
    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Objects that cannot be asked about, by reason."""

    def decode(self, name: FieldName, frame: int, objects: Sequence[int] | None = None) -> NDArray[Any]:
        """A field of a frame, counted from 0; of `objects` alone where they are given."""
        stored = Field(name, None if len(self.meta["frames"]) == 1 else frame + 1)
        if objects is None and stored in self.decoded:
            return self.decoded[stored]
        try:
            found = decode_field(stored, self.members[stored], self.shards.recipe, objects)
        except BadShard as error:
            raise error.at(f"{self.shards.folder}: {self.key}.{stored}") from None
        if objects is None:
            self.decoded[stored] = found
        return found


@dataclass(frozen=True)
class Item:
    """One question."""

    sample: Whole
    frames: Frames
    number: int
    """Of the object in its sample."""
    text: str | None
    """None where no text is asked about."""


def cut(places: Sequence[Place], size: int) -> list[Sequence[Place]]:
    """The samples of a set in groups of `size`, at least 2; one that would be alone at the end joins the group before.

    Alone it would have no caption to be swapped with.
    """
    size = max(size, 2)
    ends = [*range(size, len(places) - 1, size), len(places)]
    return [places[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True) if end]


def read(groups: Sequence[Sequence[Place]], objective: str) -> Iterator[list[Whole]]:
    """The samples of one group after the other, decoded ahead by threads.

    Args:
        groups: of this process.
        objective: a name in `trainer.objectives.OBJECTIVES`; its class says what is decoded.

    Raises:
        BadShard: a sample that cannot be read.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shards")
    try:
        ahead: deque[list[Future[Whole]]] = deque()
        for group in groups:
            ahead.append([pool.submit(_read, *place, objective) for place in group])
            if len(ahead) > _AHEAD:
                yield [sample.result() for sample in ahead.popleft()]
        while ahead:
            yield [sample.result() for sample in ahead.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(group: Sequence[Whole], objective: str, most: int) -> Iterator[tuple[Batch, list[str]]]:
    """The items of a group as batches for `Objective.judge`, each with the source of each of its items.

    A batch has at most `most` items. Where captions are swapped it may have two more: no item stands alone, nor without
    the others of its sample where there are some, since the caption-swap gap needs another object, of the same sample
    if it can be.
    """
    least = 2 if load_objective(objective).swaps_captions else 1
    packed: list[list[Item]] = []
    for sample in group:
        for part in _parts(sample.items, most, least):
            if packed and (len(packed[-1]) < least or len(packed[-1]) + len(part) <= most):
                packed[-1] += part
            elif part:
                packed.append(part)
    if len(packed) > 1 and len(packed[-1]) < least:
        last = packed.pop()
        packed[-1] += last
    yield from (_batch(items, objective) for items in packed)


def _parts(items: Sequence[Item], most: int, least: int) -> Iterator[list[Item]]:
    """Cut as evenly as can be into parts of at most `most`, but rather too large than of fewer than `least`."""
    count = max(1, min(-(-len(items) // most), len(items) // least))
    rest = iter(items)
    for part in range(count):
        yield list(islice(rest, len(items) // count + (part < len(items) % count)))


def _read(shards: ShardSet, position: int, objective: str) -> Whole:
    asked = load_objective(objective)
    sample = Whole(shards, shards.key(position), *shards.sample(position))
    frames = range(len(sample.meta["frames"]))
    visible = np.stack([sample.decode("prompt_masks", frame).any(axis=(1, 2)) for frame in frames])
    for number, item in enumerate(sample.meta["objects"]):
        texts: list[str | None] = [*usable_texts(item)] if asked.needs == "texts" else [None]
        showing = np.flatnonzero(visible[:, number]).tolist()
        if not texts:
            sample.left_out[NO_TEXT] += 1
        elif not showing and "prompt_masks1" in asked.judging_fields:
            sample.left_out[NO_REGION] += 1
        else:
            first, second = (showing * 2 if len(showing) == 1 else showing or [0, 0])[:2]
            sample.items += [Item(sample, (first, second), number, text) for text in texts]
    for name, frame in {_place(name, item.frames) for name in asked.judging_fields for item in sample.items}:
        if name != "masks":
            sample.decode(name, frame)
    return sample


def _place(name: str, frames: Frames) -> tuple[FieldName, int]:
    """The field that is `name` in a batch, and the frame, from 0, that it is taken from."""
    wanted = Field.parse(name)
    return wanted.name, frames[(wanted.frame or 1) - 1]


def _batch(items: Sequence[Item], objective: str) -> tuple[Batch, list[str]]:
    views = list(dict.fromkeys((item.sample, item.frames) for item in items))
    frames: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for name in load_objective(objective).judging_fields:
        if "masks" in name:
            values = [item.sample.decode(*_place(name, item.frames), [item.number])[0] for item in items]
        else:
            values = [sample.decode(*_place(name, shown)) for sample, shown in views]
        wanted = Field.parse(name)
        frames[(wanted.frame or 1) - 1][wanted.name] = torch.from_numpy(np.stack(values))
    batch = Batch(
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
