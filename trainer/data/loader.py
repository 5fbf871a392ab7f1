"""Shard folders into batches: threads decode straight into reused batch buffers, no process pickles a tensor.

The order is a pure function of (seed, epoch, manifests); every rank gets the same number of batches. Which samples an
optimiser step takes depends on how many it takes, not on how many processes share them.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.checksum import Check
from shards.errors import UserError
from shards.format import FIELDS, Field
from shards.groups import Group
from shards.reader import ShardSet, StoredSample
from shards.recipe import Recipe
from shards.remote import RemoteShardSet
from shards.sets import open_sets
from shards.storage.cache import Cache
from trainer.data.ahead import Ahead, check_room
from trainer.data.choice import Choice, mix, salt_of
from trainer.data.holdout import held_out_parts
from trainer.data.rows import NEEDED, Buffers, Need, Normalise, Ring, Row, Rows
from trainer.trained_on import picture_ids, sample_ids

log = logging.getLogger(__name__)

Batch = dict[str, Any]
"""What the loader yields, B samples with M chosen objects in all, as host tensors valid until the next batch but one:

- `pixel_values{k}` (B, 3, 448, 448) float32,
- `g_pixel_values{k}` (B, 3, 1024, 1024) uint8,
- `prompt_masks{k}` (M, 16, 16) bool, `masks{k}` (M, 1024, 1024) bool, for the frames k that were asked for,
- with `normalise="device"` instead `pixel_values{k}` uint8, before normalisation, and `masks{k}` (M, 1024, 128) uint8,
  eight pixels a byte, the first in the highest bit,
- `image_of_object` (M,) int64: the sample (row of the pictures) that each object belongs to,
- `keys` list[str] (B), `meta` list[dict] (B), `texts` list[list[str]] (M), those that say something; the JSON is read
  when one of the last two is looked at,
- `objects` list[int] (M): the number of each object in its sample, `turns` list[int] (M): how often it was taken
  before,
- `copies` list[int] (B): how often the sample stood in this epoch before, where sources are repeated,
- `position`: what all ranks together have consumed once this batch is trained on,
- `step_objects` int: the objects of all batches that this rank has in the optimiser step, this one's included.

- `frames` list[(int, int)] (B): which two of its frames, from 1, a sample's frames 1 and 2 are,
- `paired` (B,) bool: whether they are two; where they are one, `pixel_values2` beside `pixel_values1` is not filled.

Every sample has an object. Objects are taken in turn, `trainer.data.choice` says how. Where more than two frames show
those of a sample, two are chosen, other ones in each epoch.
"""

Position = dict[str, int]
"""{"epoch": int, "samples": int}: so many samples of this epoch's global order are consumed."""

_MORE = {
    "train": "lower batch_size or accumulation, lower data.holdout, or give more shards (data.shards)",
    "holdout": "raise data.holdout, lower batch_size, or train without evaluation: data.holdout=0",
}
"""Advice where a part has too few samples, by part."""
_SHUFFLE_WINDOW = 64  # shards whose samples are mixed; bounds how many tars are read at a time


def check_recipe(
    recipe: Recipe, *, vision_size: int, grid: int, sam_size: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise `UserError` where shards of `recipe` do not fit a model that takes these sizes and constants."""
    wanted = {"vision_size": vision_size, "grid": grid, "sam_size": sam_size, "mean": tuple(mean), "std": tuple(std)}
    for name, value in wanted.items():
        met = getattr(recipe, name)
        if met != value:
            do = "write the shards with the recipe that this model takes"
            raise UserError(
                f"recipe.{name} of the shards does not fit the model", met=str(met), wanted=str(value), do=do
            )


def _described(shards: ShardSet) -> str:
    manifest = shards.manifest
    lossy = f", {manifest.pictures}" if manifest.psnr else ""
    return f"{manifest.source}: {len(shards)} samples, plan {manifest.plan[:12]}{lossy}"


class Loader:
    """Batches from shard folders.

    Args:
        paths: folders or URLs of finished shard sets or of folders of them, all of one recipe.
        fields: which tensors, with the frame's number: ("pixel_values1", "prompt_masks1", "masks2", ...).
        batch_size: samples a batch on this rank.
        accumulation: batches an optimiser step. An epoch holds whole steps: none takes samples of two epochs.
        holdout: share of the samples that is held out of training (`part` "holdout").
        holdout_by: what stays together on one side; `trainer.data.holdout` decides.
        part: "train" is shuffled; "holdout" keeps the order of the shards.
        sources: read these alone; all where none is named.
        repeats: how often the training samples of a source stand in an epoch, by its name; once where it is not named.
        objects_per_sample: objects taken from each sample, in turn; all of them where it has fewer.
        need: choose among the objects that have this, and leave out samples where none has; any object by default.
        threads: decoders; 0: a batch is decoded when it is asked for, by who asks.
        prefetch: batches in the making ahead of the one that is in use.
        pin: use page-locked memory (with a GPU).
        cache: where sets at URLs are read through.
        normalise: "device" leaves `pixel_values` and `masks` as they are stored, for `trainer.data.normalise` and
            `trainer.data.unpack` to turn into the same values where they are used.
        check: when a sample's bytes are compared with their checksum, see `shards.reader.ShardSet`.

        purpose: the key of the configuration that it is for, for messages, such as mix.segment.

    Raises:
        UserError: shards of different recipes, or fewer samples than one optimiser step takes that have what is needed.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        fields: tuple[str, ...],
        batch_size: int,
        accumulation: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        holdout: float = 0.0,
        holdout_by: Group = "picture",
        part: Literal["train", "holdout"] = "train",
        sources: Sequence[str] = (),
        repeats: Mapping[str, int] | None = None,
        objects_per_sample: int = 1,
        need: Need | None = None,
        threads: int = 2,
        prefetch: int = 2,
        pin: bool = False,
        cache: Cache | None = None,
        normalise: Normalise = "host",
        purpose: str = "",
        check: Check = "first",
    ) -> None:
        if not paths:
            raise UserError("no shard folder given", where="data.shards", do="for example data.shards=[shards/sav]")
        self._sets = open_sets(paths, cache, check)
        names = {s.manifest.source for s in self._sets}
        for where, asked in (("data.sources", repeats or {}), ("mix", sources)):
            if unknown := sorted({*asked} - names):
                wanted = ", ".join(sorted(names))
                raise UserError("no shards of this source", where=where, met=", ".join(unknown), wanted=wanted)
        parts = held_out_parts(self._sets, holdout, holdout_by)
        if sources:
            parts = [held for s, held in zip(self._sets, parts, strict=True) if s.manifest.source in sources]
            self._sets = [s for s in self._sets if s.manifest.source in sources]
        self.recipe = self._sets[0].recipe
        self.described = [_described(s) for s in self._sets]
        """A line a set: what is read."""
        self.lossy = [f"{s.folder}: {s.manifest.pictures}" for s in self._sets if s.manifest.psnr]
        """A line a set whose pictures are not quite what the recipe makes."""
        for other in self._sets[1:]:
            if other.recipe.digest != self.recipe.digest:
                met, wanted = map(str, (other.recipe, self.recipe))
                raise UserError("shards of different recipes", where=str(other.folder), met=met, wanted=wanted)
        self._rows = Rows([_frame_field(name) for name in fields], self.recipe, objects_per_sample, need, normalise)
        self._idle: list[Ring] = []
        needed = (prefetch + 2) * self._rows.nbytes(batch_size)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            met, wanted = f"{needed / 1e9:,.1f} GB", f"less than this machine's {memory / 1e9:,.1f} GB"
            do = "lower data.prefetch, batch_size or data.objects_per_sample"
            raise UserError("batches take more memory than there is", where="data", met=met, wanted=wanted, do=do)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._shuffled, self._accumulation = seed, part == "train", accumulation
        self._single = objects_per_sample == 1
        self._threads, self._prefetch, self._pin = threads, prefetch, pin
        if repeats and self._shuffled:
            # A set that counts several times stands there several times: each copy has positions of its own.
            times = [repeats.get(s.manifest.source, 1) for s in self._sets]
            self._copies = [(copy, count) for count in times for copy in range(count)]
            parts = [held for held, count in zip(parts, times, strict=True) for _ in range(count)]
            self._sets = [s for s, count in zip(self._sets, times, strict=True) for _ in range(count)]
        else:
            self._copies = [(0, 1)] * len(self._sets)
        self._cache = cache
        if self._shuffled:
            check_room(cache, self._sets, _SHUFFLE_WINDOW)
        # Global positions run through the sets in their order; `_starts[i]` is the first of set i.
        self._starts = np.cumsum([0, *(len(s) for s in self._sets)]).tolist()
        chosen = np.concatenate(parts) == (part == "holdout")
        usable = np.concatenate([s.index[need] > 0 if need else np.ones(len(s), np.bool_) for s in self._sets])
        self.left_out = int((chosen & ~usable).sum())
        """Samples of this part without an object that has what is needed."""
        self._positions = np.flatnonzero(chosen & usable).astype(np.uint64)
        shards = [len(s.manifest.shards) for s in self._sets]
        first = np.cumsum([0, *shards])
        shard_of = np.concatenate([s.index["shard"] + first[i] for i, s in enumerate(self._sets)])
        self._shards = shard_of[self._positions.astype(np.int64)].astype(np.uint64)
        per_step = batch_size * world_size * accumulation
        self.steps_per_epoch = len(self._positions) // per_step
        """Optimiser steps of an epoch."""
        self._samples_per_epoch = self.steps_per_epoch * per_step
        self.unused = len(self._positions) - self._samples_per_epoch
        """Samples of an epoch that no batch holds: always fewer than one optimiser step takes."""
        self.wait_seconds = 0.0
        """Time that the consumer spent waiting for data so far."""
        without = f"{self.left_out} without {NEEDED[need]}" if need else ""
        if not self.steps_per_epoch:
            met, product = f"{len(self._positions)} samples", "batch_size x processes x accumulation"
            wanted = f"{per_step} ({product if accumulation > 1 else 'batch_size x processes'})"
            met += f", and {without}" if self.left_out else ""
            where = ", ".join([*filter(None, [purpose]), *(str(s.folder) for s in self._sets)])
            do = _MORE[part] + (", or give it other sources" if sources else "")
            raise UserError(f"too few samples in the {part} part", where=where, met=met, wanted=wanted, do=do)
        if self.left_out:
            log.warning("%s part: samples left out, %s", part, without)
        counts = len(self._positions), self.steps_per_epoch, self.unused
        log.info("%s part: %d samples, %d steps an epoch, %d samples of each epoch unused", part, *counts)

    @property
    def plans(self) -> list[str]:
        """The plan of each set."""
        return [s.manifest.plan for s in self._sets]

    @property
    def sample_ids(self) -> NDArray[np.uint64]:
        """Ids of the samples of this part and of the pictures or videos that they show, see `trainer.trained_on`.

        They are in no order, and some of them are there several times.
        """
        positions = self._positions.astype(np.int64)
        return np.concatenate(
            [np.concatenate([of(s) for s in self._sets])[positions] for of in (sample_ids, picture_ids)]
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The positions of an epoch's samples in the order in which all ranks together consume them."""
        if not self._shuffled:
            return self._positions.astype(np.int64)
        salt = self._seed * 1_000_003 + epoch
        # Shards are shuffled, then the samples of each run of `_SHUFFLE_WINDOW` shards among one another.
        ids = np.unique(self._shards)
        rank = np.argsort(np.argsort(mix(ids, salt + 1), kind="stable"))
        window = rank[np.searchsorted(ids, self._shards)] // _SHUFFLE_WINDOW
        return self._positions[np.lexsort((mix(self._positions, salt), window))].astype(np.int64)

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of `epoch`, after the first `consumed` samples of the order of all ranks."""
        order = self.order(epoch)
        together = self._batch_size * self._world_size
        ring = self._idle.pop() if self._idle else self._new_ring()
        pending: deque[tuple[Buffers, list[Future[list[Row]]]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="shards") if self._threads else _AtOnce()
        depth = self._prefetch if self._threads else 0
        first = consumed // together
        upcoming = iter(range(first, self._samples_per_epoch // together))
        ahead = self._ahead(order[first * together : self._samples_per_epoch], epoch)
        counts = self._step_objects(pool, order, epoch, first // self._accumulation)
        step_objects = 0
        used = ring.turn
        try:
            for done in range(first, self._samples_per_epoch // together):
                started = time.perf_counter()
                if done == first or done % self._accumulation == 0:
                    step_objects = next(counts)
                while len(pending) <= depth and (number := next(upcoming, None)) is not None:
                    pending.append(self._submit(pool, ring.next(), self._own(order, number), epoch))
                buffers, parts = pending.popleft()
                rows = [row for part in parts for row in part.result()]
                self.wait_seconds += time.perf_counter() - started
                used += 1
                if ahead:
                    ahead.consumed((done + 1 - first) * together)
                batch = self._rows.batch(buffers, rows)
                yield {
                    **batch,
                    "position": {"epoch": epoch, "samples": (done + 1) * together},
                    "step_objects": step_objects or len(batch["objects"]),
                }
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if ahead:
                ahead.close()
            ring.turn = used  # the batch that the consumer may still look at is the last one that is written to
            if self._shuffled:  # the held-out part is read now and then
                self._idle.append(ring)

    def _own(self, order: NDArray[np.int64], number: int) -> list[int]:
        """The positions of this rank's samples in the batch `number` of an epoch."""
        begin = (number * self._world_size + self._rank) * self._batch_size
        own: list[int] = order[begin : begin + self._batch_size].tolist()
        return own

    def _step_objects(self, pool: Executor, order: NDArray[np.int64], epoch: int, first: int) -> Iterator[int]:
        """How many objects this rank has in each optimiser step of an epoch from step `first` on.

        Counted a step ahead: losses are divided by it before the step's last batches are decoded. 0 where a step is one
        batch, which tells itself.
        """

        def count(step: int) -> int:
            numbers = range(step * self._accumulation, (step + 1) * self._accumulation)
            return sum(self._count(self._own(order, number), epoch) for number in numbers)

        if self._accumulation == 1:
            yield from (0 for _ in range(first, self.steps_per_epoch))
            return
        waiting: Future[int] | None = None
        for step in range(first, self.steps_per_epoch):
            upcoming = pool.submit(count, step)
            if waiting:
                yield waiting.result()
            waiting = upcoming
        if waiting:
            yield waiting.result()

    def _count(self, positions: list[int], epoch: int) -> int:
        """How many objects the samples at `positions` have in an epoch."""
        if self._single:
            return len(positions)
        return sum(len(self._chosen(position, epoch)[2].objects) for position in positions)

    def _ahead(self, order: NDArray[np.int64], epoch: int) -> Ahead | None:
        """Fetch the shards of remote sets in the background, as the samples in `order` need them."""
        if not self._cache or not any(isinstance(s, RemoteShardSet) for s in self._sets):
            return None

        # All ranks fetch for all: those on one machine hold the same shards, and none waits for another's room.
        fetches, depth = self._cache.fetches, self._cache.fetches + 1
        if not self._shuffled:
            return Ahead(self._sets, self._starts, order, depth, fetches)
        depth, length = 2 * _SHUFFLE_WINDOW, self._samples_per_epoch
        return Ahead(self._sets, self._starts, order, depth, fetches, lambda: self.order(epoch + 1)[:length])

    def _new_ring(self) -> Ring:
        return Ring([self._rows.buffers(self._batch_size, self._pin) for _ in range(self._prefetch + 2)])

    def _submit(
        self, pool: Executor, buffers: Buffers, positions: list[int], epoch: int
    ) -> tuple[Buffers, list[Future[list[Row]]]]:
        """Let each thread fill a run of rows: a task a row costs as much Python as reading it."""
        size = -(-len(positions) // max(1, self._threads))
        starts = range(0, len(positions), size)
        return buffers, [pool.submit(self._fill, buffers, n, positions[n : n + size], epoch) for n in starts]

    def _fill(self, buffers: Buffers, first: int, positions: list[int], epoch: int) -> list[Row]:
        rows, later = [], list[Callable[[], object]]()
        for row, position in enumerate(positions, first):
            sample, copy, choice = self._chosen(position, epoch)
            with sample.changed_bytes_first():
                rows.append(self._rows.fill(buffers, row, sample, copy, choice, later))
        for do in later:
            do()
        return rows

    def _chosen(self, position: int, epoch: int) -> tuple[StoredSample, int, Choice]:
        """The sample at a global position, which of its copies that is, and what an epoch takes of it."""
        which = bisect_right(self._starts, position) - 1
        sample = self._sets[which].open(position - self._starts[which], compare_later=True)
        copy, copies = self._copies[which]
        # The copies of a sample visit it one after another, so that they share out its objects.
        with sample.changed_bytes_first():
            choice = self._rows.choose(sample, salt_of(self._seed, sample.key), epoch * copies + copy)
        return sample, copy, choice


class _AtOnce(Executor):
    """Does what it is given before it gives it back."""

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future = Future[Any]()
        try:
            future.set_result(task(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _frame_field(name: str) -> Field:
    field = Field.parse(name)
    if field.frame not in (1, 2):
        raise UserError("unknown field asked for", met=name, wanted=" or ".join(f"{n}1, {n}2" for n in FIELDS))
    return field
