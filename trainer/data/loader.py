"""Shard sets into batches: threads decode straight into reused batch buffers, no process pickles a tensor.

The order is a pure function of seed, epoch and manifests; every process gets the same number of batches. Which samples
an optimiser step takes depends on how many it takes, not on how many processes share them.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.checksum import Check
from shards.errors import UserError
from shards.format import FIELDS, Field
from shards.groups import Group
from shards.reader import ShardSet
from shards.recipe import Recipe
from shards.remote import RemoteShardSet
from shards.sets import open_sets
from shards.storage.cache import Cache
from trainer.data.batch import Batch
from trainer.data.choice import salt_of
from trainer.data.decoding import NEEDED, BatchDecoder, Buffers, Need, Normalise, Ring, Visit
from trainer.data.fetching import ShardFetcher, check_cache_size
from trainer.data.holdout import held_out_parts
from trainer.data.order import SHUFFLE_WINDOW, Entry, Part, SampleOrder
from trainer.trained_on import picture_ids, sample_ids

log = logging.getLogger(__name__)

_MORE = {
    "train": "lower batch_size or accumulation, lower data.holdout, or give more shards (data.shards)",
    "holdout": "raise data.holdout, or train without evaluation: data.holdout=0",
}
"""Advice where a part has too few samples, by part."""


def check_recipe(
    recipe: Recipe, *, vision_size: int, grid: int, sam_size: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise `UserError` where shards of `recipe` do not fit a model that takes these sizes and constants."""
    expected = {"vision_size": vision_size, "grid": grid, "sam_size": sam_size, "mean": tuple(mean), "std": tuple(std)}
    for name, value in expected.items():
        if getattr(recipe, name) != value:
            raise UserError(
                f"recipe.{name} of the shards does not fit the model",
                met=str(getattr(recipe, name)),
                wanted=str(value),
                do="write the shards with the recipe that this model takes",
            )


def _described(shards: ShardSet) -> str:
    manifest = shards.manifest
    lossy = f", {manifest.pictures}" if manifest.psnr else ""
    return f"{manifest.source}: {len(shards)} samples, plan {manifest.plan[:12]}{lossy}"


@dataclass(frozen=True)
class LoaderOptions:
    """What a loader reads of shard sets, and how."""

    fields: tuple[str, ...]
    """Tensors, with the frame's number: ("pixel_values1", "prompt_masks1", "masks2", ...)."""
    batch_size: int
    """Samples per batch on this process."""
    seed: int
    accumulation: int = 1
    """Batches per optimiser step on this process. An epoch holds whole steps: none takes samples of two epochs."""
    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Processes."""
    holdout: float = 0.0
    """Share of the samples that is held out of training."""
    holdout_by: Group = "picture"
    """What stays together on one side; `trainer.data.holdout` decides."""
    part: Part = "train"
    """Samples to read: "train" is shuffled, and the rest that fills no optimiser step is dropped; "holdout" keeps the
    order of the shards and drops nothing."""
    limit: int | None = None
    """Take the first so many samples of the part alone."""
    sources: Sequence[str] = ()
    """Read these alone; all where none is named."""
    repeats: Mapping[str, int] = field(default_factory=dict)
    """How often the training samples of a source come in an epoch, by its name; once where it is not named."""
    objects_per_sample: int = 1
    """Most objects that are taken of a sample, in turn."""
    need: Need | None = None
    """Choose among the objects that have this, and leave out samples where none has; any object where None."""
    threads: int = 2
    """Decoders; with 0 a batch is decoded when it is asked for, by the thread that asks."""
    prefetch: int = 2
    """Batches that are decoded ahead of the one in use."""
    pin: bool = False
    """Use page-locked memory (with a GPU)."""
    cache: Cache | None = None
    """Where sets at URLs are read through."""
    normalise: Normalise = "host"
    """Where they are finished: "device" leaves `pixel_values` and `masks` as they are stored, for `Batch.to`."""
    purpose: str = ""
    """The key of the configuration that the loader is for, for messages, such as mix.segment."""
    check: Check = "first"
    """When a sample's bytes are compared with their checksum, see `shards.reader.ShardSet`."""


class Loader:
    """Batches from shard sets.

    A batch is valid until the next but one is asked for: its tensors lie in buffers that are used in turn.

    Args:
        paths: folders or URLs of finished shard sets or of folders of them, all of one recipe.
        options: what to read, and how.

    Raises:
        UserError: shards of different recipes, or too few samples that have what is needed.
    """

    def __init__(self, paths: Sequence[str], options: LoaderOptions) -> None:
        self._options = options
        self._entries = _open_entries(paths, options)
        self._sets = [entry.shards for entry in self._entries]
        read = [entry.shards for entry in self._entries if not entry.copy]
        self.recipe = read[0].recipe
        self.described = [_described(shards) for shards in read]
        """What is read, one line per set."""
        self.lossy = [f"{shards.folder}: {shards.manifest.pictures}" for shards in read if shards.manifest.psnr]
        """The sets whose pictures are not bit-equal to what the recipe makes, one line per set."""
        self._decoder = BatchDecoder(
            [_frame_field(name) for name in options.fields],
            self.recipe,
            options.objects_per_sample,
            options.need,
            options.normalise,
        )
        _check_memory((options.prefetch + 2) * self._decoder.nbytes(options.batch_size))
        if options.part == "train":
            check_cache_size(options.cache, self._sets, SHUFFLE_WINDOW)
        self._order = SampleOrder(self._entries, options.part, options.need, options.seed, options.limit)
        self._batch_samples = options.batch_size * options.world_size
        per_step = self._batch_samples * options.accumulation
        self.steps_per_epoch = len(self._order) // per_step
        """Optimiser steps of an epoch."""
        self._batches = self.steps_per_epoch * options.accumulation
        if options.part == "holdout":
            self._batches = -(-len(self._order) // self._batch_samples)
        self._samples_per_epoch = min(len(self._order), self._batches * self._batch_samples)
        self.unused = len(self._order) - self._samples_per_epoch
        """Samples of an epoch that no batch holds: always fewer than one optimiser step takes."""
        self.wait_seconds = 0.0
        """Time that the consumer spent waiting for data so far."""
        self._idle: list[Ring] = []
        self._report_samples(per_step if options.part == "train" else 1)

    def _report_samples(self, least: int) -> None:
        """Log how many samples there are; raise `UserError` where they are fewer than `least`."""
        options = self._options
        count = len(self._order)
        left_out = self._order.left_out
        without = f"{left_out} without {NEEDED[options.need]}" if options.need else ""
        if count < least:
            available = f"{count} samples" + (f", and {without}" if left_out else "")
            expected = f"{least} (batch_size x processes{' x accumulation' if options.accumulation > 1 else ''})"
            where = ", ".join([*filter(None, [options.purpose]), *(str(shards.folder) for shards in self._sets)])
            do = _MORE[options.part] + (", or give it other sources" if options.sources else "")
            expected = expected if options.part == "train" else "at least 1"
            raise UserError(
                f"too few samples in the {options.part} part", where=where, met=available, wanted=expected, do=do
            )
        if left_out:
            log.warning("%s part: samples left out, %s", options.part, without)
        log.info(
            "%s part: %d samples, %d batches per epoch and process, %d samples of each epoch unused",
            *(options.part, count, self._batches, self.unused),
        )

    @property
    def left_out(self) -> int:
        """Samples of this part without an object that has what is needed."""
        return self._order.left_out

    @property
    def plans(self) -> list[str]:
        """The plan of each set."""
        return [shards.manifest.plan for shards in self._sets]

    @property
    def sample_ids(self) -> NDArray[np.uint64]:
        """Ids of the samples of this part and of the pictures or videos that they show, see `trainer.trained_on`.

        They are in no order, and some of them are there several times.
        """
        positions = self._order.positions
        return np.concatenate(
            [np.concatenate([ids(shards) for shards in self._sets])[positions] for ids in (sample_ids, picture_ids)]
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The positions of an epoch's samples in the order in which all processes together visit them."""
        return self._order.epoch(epoch)

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of `epoch`, after the first `consumed` samples of the order of all processes.

        Every process gets as many batches. In the held-out part the last one may be smaller, or padding.
        """
        options = self._options
        order = self.order(epoch)
        together = self._batch_samples
        first = consumed // together
        ring = self._idle.pop() if self._idle else self._new_ring()
        pending: deque[tuple[Buffers, list[Future[list[Visit]]]]] = deque()
        pool = ThreadPoolExecutor(options.threads, "shards") if options.threads else _ImmediateExecutor()
        depth = options.prefetch if options.threads else 0
        upcoming = iter(range(first, self._batches))
        ahead = self._ahead(order[first * together : self._samples_per_epoch], epoch)
        counts = self._step_objects(pool, order, epoch, first // options.accumulation)
        step_objects = 0
        used = ring.turn
        try:
            for done in range(first, self._batches):
                started = time.perf_counter()
                if done == first or done % options.accumulation == 0:
                    step_objects = next(counts)
                while len(pending) <= depth and (number := next(upcoming, None)) is not None:
                    pending.append(self._submit(pool, ring.next(), self._own(order, number), epoch))
                buffers, parts = pending.popleft()
                visits = [visit for part in parts for visit in part.result()]
                self.wait_seconds += time.perf_counter() - started
                used += 1
                if ahead:
                    ahead.consumed((done + 1 - first) * together)
                yield self._decoder.batch(
                    buffers,
                    visits,
                    position={"epoch": epoch, "samples": (done + 1) * together},
                    step_counts={"objects": step_objects or sum(len(visit.choice.objects) for visit in visits)},
                    is_padding=self._group(done) * options.batch_size >= len(order),
                )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if ahead:
                ahead.close()
            ring.turn = used  # the batch that the consumer may still read is the last one that is written to
            if options.part == "train":  # the held-out part is read too rarely to keep its memory
                self._idle.append(ring)

    def _group(self, number: int) -> int:
        """The group of `batch_size` samples in an epoch's order that this process takes as its batch `number`.

        Process r of W takes the groups r, r + W, ...: batches hold the same samples for any number of processes.
        """
        return number * self._options.world_size + self._options.rank

    def _own(self, order: NDArray[np.int64], number: int) -> list[int]:
        """The positions of this process's samples in batch `number`: of the epoch's last group where it has none."""
        size = self._options.batch_size
        begin = min(self._group(number), (len(order) - 1) // size) * size
        positions: list[int] = order[begin : begin + size].tolist()
        return positions

    def _step_objects(self, pool: Executor, order: NDArray[np.int64], epoch: int, first: int) -> Iterator[int]:
        """How many objects this process has in each optimiser step of an epoch from step `first` on.

        Counted a step ahead: losses are divided by it before the step's last batches are decoded. 0 where a step is one
        batch, which knows it itself.
        """
        accumulation = self._options.accumulation

        def count(step: int) -> int:
            numbers = range(step * accumulation, (step + 1) * accumulation)
            return sum(self._count(self._own(order, number), epoch) for number in numbers)

        if accumulation == 1:
            yield from (0 for _ in range(first, self._batches))
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
        if self._options.objects_per_sample == 1:
            return len(positions)
        return sum(len(self._visit(position, epoch).choice.objects) for position in positions)

    def _ahead(self, order: NDArray[np.int64], epoch: int) -> ShardFetcher | None:
        """Fetch the shards of remote sets in the background, as the samples in `order` need them."""
        cache = self._options.cache
        starts = np.asarray(self._order.starts)
        if not cache or not any(isinstance(shards, RemoteShardSet) for shards in self._sets):
            return None

        # All processes fetch for all: those on one machine hold the same shards, and none waits for another's room.
        fetches = cache.fetches
        if self._options.part == "holdout":
            return ShardFetcher(self._sets, starts, order, depth=fetches + 1, fetches=fetches)
        return ShardFetcher(
            self._sets,
            starts,
            order,
            depth=2 * SHUFFLE_WINDOW,
            fetches=fetches,
            following=lambda: self.order(epoch + 1)[: self._samples_per_epoch],
        )

    def _new_ring(self) -> Ring:
        options = self._options
        return Ring([self._decoder.buffers(options.batch_size, options.pin) for _ in range(options.prefetch + 2)])

    def _submit(
        self, pool: Executor, buffers: Buffers, positions: list[int], epoch: int
    ) -> tuple[Buffers, list[Future[list[Visit]]]]:
        """Let each thread fill a run of rows: a task per row costs as much Python as reading it."""
        size = -(-len(positions) // max(1, self._options.threads))
        starts = range(0, len(positions), size)
        return buffers, [pool.submit(self._fill, buffers, n, positions[n : n + size], epoch) for n in starts]

    def _fill(self, buffers: Buffers, first: int, positions: list[int], epoch: int) -> list[Visit]:
        visits: list[Visit] = []
        later: list[Callable[[], object]] = []
        for row, position in enumerate(positions, first):
            visit = self._visit(position, epoch)
            with visit.sample.changed_bytes_first():
                visits.append(self._decoder.fill(buffers, row, visit, later))
        for do in later:
            do()
        return visits

    def _visit(self, position: int, epoch: int) -> Visit:
        """What an epoch takes of the sample at a position."""
        entry, number = self._order.locate(position)
        sample = entry.shards.open(number, compare_later=True)
        # The copies of a sample visit it one after another, so that they share out its objects.
        visit = epoch * entry.copies + entry.copy
        with sample.changed_bytes_first():
            choice = self._decoder.choose(sample, salt_of(self._options.seed, sample.key), visit)
        return Visit(sample, choice, entry.copy)


def _open_entries(paths: Sequence[str], options: LoaderOptions) -> list[Entry]:
    """Open the shard sets that are read, and repeat those that come several times in an epoch."""
    if not paths:
        raise UserError("no shard folder given", where="data.shards", do="for example data.shards=[shards/sav]")
    sets = open_sets(paths, options.cache, options.check)
    names = {shards.manifest.source for shards in sets}
    for where, asked in (("data.sources", options.repeats), ("mix", options.sources)):
        if unknown := sorted({*asked} - names):
            known = ", ".join(sorted(names))
            raise UserError("no shards of this source", where=where, met=", ".join(unknown), wanted=known)
    parts = held_out_parts(sets, options.holdout, options.holdout_by)
    read = [
        (shards, part)
        for shards, part in zip(sets, parts, strict=True)
        if not options.sources or shards.manifest.source in options.sources
    ]
    recipe = read[0][0].recipe
    for shards, _ in read[1:]:
        if shards.recipe.digest != recipe.digest:
            where = str(shards.folder)
            raise UserError("shards of different recipes", where=where, met=str(shards.recipe), wanted=str(recipe))
    entries = []
    for shards, part in read:
        copies = options.repeats.get(shards.manifest.source, 1) if options.part == "train" else 1
        entries += [Entry(shards, part, copy, copies) for copy in range(copies)]
    return entries


def _check_memory(needed: int) -> None:
    """Raise `UserError` where batches of `needed` bytes in all do not fit this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        required = f"{needed / 1e9:,.1f} GB"
        expected = f"less than this machine's {memory / 1e9:,.1f} GB"
        do = "lower data.prefetch, batch_size or data.objects_per_sample"
        raise UserError("batches take more memory than there is", where="data", met=required, wanted=expected, do=do)


class _ImmediateExecutor(Executor):
    """Runs a task when it is submitted, in the thread that submits it."""

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
