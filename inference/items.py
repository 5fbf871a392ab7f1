"""Shard sets read whole for evaluation: every object of every sample once, in batches that no process decides about.

`trainer.data.Loader` chooses objects, drops what does not fill a batch, and gives every process as many batches. Here
nothing is chosen or dropped. Samples are cut into groups of so many, and each process takes every so-many-th group.
Batches are made of one group alone, so they are the same however many processes there are.
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
from shards.format import Field
from shards.reader import ShardSet, decode_field
from trainer.data import Batch
from trainer.judge import JUDGED

TEXT_OBJECTIVES = ("segment", "describe", "reverse")
"""Objectives that ask about a text: each text of an object is an item. For `dual` each object is one."""
NO_TEXT, NO_REGION = "objects without a text", "objects without a prompt cell in frame 1"
_AHEAD = 2  # groups that are decoded while one is in use
_THREADS = 2

Place = tuple[ShardSet, int]
"""A sample: its set, and its position there."""


@dataclass(eq=False)
class Whole:
    """A sample with N objects."""

    shards: ShardSet
    key: str
    meta: dict[str, Any]
    members: dict[Field, memoryview]
    decoded: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By field: pictures (3, S, S) and `prompt_masks1` (N, 16, 16). Masks are decoded when their turn comes: there may
    be a hundred, of a megabyte each."""
    items: list[tuple[int, str | None]] = field(default_factory=list)
    """Object and text of each item; None where no text is asked about."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Objects that cannot be asked about, by reason."""

    def decode(self, name: str, objects: Sequence[int] | None = None) -> NDArray[Any]:
        """A field, of `objects` alone where they are given; the frame of a single-frame sample serves as each."""
        wanted = Field.parse(name)
        stored = Field(wanted.name, None) if len(self.meta["frames"]) == 1 else wanted
        try:
            return decode_field(stored, self.members[stored], self.shards.recipe, objects)
        except BadShard as error:
            where = f"{self.shards.folder}: {self.key}.{stored}"
            raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=error.do) from None


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
        objective: a key of `JUDGED`, which says what is decoded.

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
    """The items of a group as batches for `trainer.judge.judge`, each with the source of each of its items.

    A batch has at most `most` items. For dual it may have two more: no item stands alone, nor without the others of its
    sample where there are some, since the caption-swap gap needs another object, of the same sample if it can be.
    """
    least = 2 if objective == "dual" else 1
    packed: list[list[tuple[Whole, int, str | None]]] = []
    for sample in group:
        for part in _parts([(sample, *item) for item in sample.items], most, least):
            if packed and (len(packed[-1]) < least or len(packed[-1]) + len(part) <= most):
                packed[-1] += part
            elif part:
                packed.append(part)
    if len(packed) > 1 and len(packed[-1]) < least:
        last = packed.pop()
        packed[-1] += last
    yield from (_batch(items, objective) for items in packed)


def _parts(items: list[Any], most: int, least: int) -> Iterator[list[Any]]:
    """Cut as evenly as can be into parts of at most `most`, but rather too large than of fewer than `least`."""
    count = max(1, min(-(-len(items) // most), len(items) // least))
    rest = iter(items)
    for part in range(count):
        yield list(islice(rest, len(items) // count + (part < len(items) % count)))


def _read(shards: ShardSet, position: int, objective: str) -> Whole:
    sample = Whole(shards, shards.key(position), *shards.sample(position))
    sample.decoded = {name: sample.decode(name) for name in JUDGED[objective] if not name.startswith("masks")}
    regions = sample.decoded.get("prompt_masks1")
    for number, item in enumerate(sample.meta["objects"]):
        texts: list[str | None] = [None]
        if objective in TEXT_OBJECTIVES:
            texts = [text for text in item.get("texts") or () if isinstance(text, str) and text.strip()]
        if not texts:
            sample.left_out[NO_TEXT] += 1
        elif regions is not None and not regions[number].any():
            sample.left_out[NO_REGION] += 1
        else:
            sample.items += [(number, text) for text in texts]
    return sample


def _batch(items: Sequence[tuple[Whole, int, str | None]], objective: str) -> tuple[Batch, list[str]]:
    samples = list(dict.fromkeys(sample for sample, _, _ in items))
    batch: Batch = {
        "image_of_object": torch.tensor([samples.index(sample) for sample, _, _ in items]),
        "texts": [[] if text is None else [text] for _, _, text in items],
        "keys": [sample.key for sample in samples],
    }
    for name in JUDGED[objective]:
        if name.startswith("masks"):
            values = [sample.decode(name, [number])[0] for sample, number, _ in items]
        elif name.startswith("prompt_masks"):
            values = [sample.decoded[name][number] for sample, number, _ in items]
        else:
            values = [sample.decoded[name] for sample in samples]
        batch[name] = torch.from_numpy(np.stack(values))
    return batch, [sample.shards.manifest.source for sample, _, _ in items]
