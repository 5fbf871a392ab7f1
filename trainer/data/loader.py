"""Shard sets into batches: threads decode straight into reused batch buffers, no process pickles a tensor.

The order is a pure function of seed, epoch and manifests; every process gets the same number of batches. Which samples
an optimiser step takes depends on how many it takes, not on how many processes share them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

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
from trainer.conversations.options import ConversationOptions
from trainer.data.batch import Batch
from trainer.data.conversation_decoder import ConversationDecoder
from trainer.data.copying import Copies, Event
from trainer.data.decoding import NEEDED, Buffers, Decoder, Need, Normalise, Place, Ring, SampleVisit
from trainer.data.fetching import ShardFetcher, check_cache_size
from trainer.data.holdout import held_out_parts
from trainer.data.lengths import expected_tokens
from trainer.data.order import SHUFFLE_WINDOW, Entry, Part, SampleOrder, entries_of
from trainer.data.other_phrases import OtherPhrases
from trainer.data.pair_decoder import PairDecoder
from trainer.data.selection import OF_SOURCE, Selection, Texts, Where, check_sources, lines_of, select
from trainer.model.prompts import Prompts
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


def _described(shards: ShardSet, selection: Selection | None) -> str:
    manifest = shards.manifest
    lossy = f", {manifest.pictures}" if manifest.psnr else ""
    chosen = f", {selection.described}" if selection is not None else ""
    return f"{manifest.source}: {len(shards)} samples, plan {manifest.plan[:12]}{lossy}{chosen}"


@dataclass(frozen=True)
class LoaderOptions:
    """What a loader reads of shard sets, and how."""

    fields: tuple[str, ...]
    """Tensors, with the frame's number: ("pixel_values1", "prompt_masks1", "masks2", ...). Without effect with
    `conversations`, which need what they need."""
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
    """Take so many samples of the part alone, of all sets in turn."""
    sources: Sequence[str] = ()
    """Read these alone; all where none is named."""
    repeats: Mapping[str, float] = field(default_factory=dict)
    """How often the training samples of a source come in an epoch, by its name; once where it is not named. Of a
    fraction each epoch takes other samples: with 0.1 each comes once in ten epochs."""
    where: Where = None
    """Read the samples as if they had only these objects."""
    texts: Texts = OF_SOURCE
    """Texts that the objects have."""
    objects_per_sample: int = 1
    """Most objects that are taken of a sample, in turn."""
    need: Need | None = None
    """Choose among the objects that have this, and leave out samples without it; any object where None."""
    conversations: ConversationOptions | None = None
    """Read batches of conversations; None: of pairs."""
    kind: str | None = None
    """The only kind of conversation; None: the one that fits the source or the sample."""
    prompts: Prompts | None = None
    """Turns conversations into tokens; None where only the order of samples is asked for."""
    group_by_length: bool = False
    """Let the training samples of an optimiser step be alike in the length of their conversations."""
    threads: int = 2
    """Decoders; with 0 a batch is decoded when it is asked for, by the thread that asks."""
    prefetch: int = 2
    """Batches that are decoded ahead of the one in use."""
    copies: Copies[Batch] | None = None
    """Copies batches to a GPU ahead of their use, from page-locked memory; None: batches stay on the host."""
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
    With `copies` they are on the device, and stay valid; the next batch is copied while the consumer uses this one,
    where it is decoded by then.

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
        first = [entry for entry in self._entries if not entry.copy]
        read = [entry.shards for entry in first]
        self.recipe = read[0].recipe
        self.described = [_described(entry.shards, entry.selection) for entry in first]
        """What is read, one line per set."""
        self.selections = {e.shards.folder: e.selection for e in first if e.selection is not None}
        """What `where` and `texts` say of each set, by its folder; without sets that are taken as they are."""
        self.selected = [*lines_of(read, [entry.selection for entry in first], options.where)]
        """The same in words, one line per set."""
        self.lossy = [f"{shards.folder}: {shards.manifest.pictures}" for shards in read if shards.manifest.psnr]
        """The sets whose pictures are not bit-equal to what the recipe makes, one line per set."""
        self._decoder = _decoder_for(options, self.recipe)
        if options.part == "train":
            check_cache_size(options.cache, self._sets, SHUFFLE_WINDOW)
        self._batch_samples = options.batch_size * options.world_size
        per_step = self._batch_samples * options.accumulation if options.part == "train" else 1
        lengths = None
        if options.conversations and options.group_by_length:
            lengths = [expected_tokens(e.shards, options.conversations, e.selection) for e in self._entries]
        self._order = SampleOrder(
            self._entries, options.part, options.need, options.seed, options.limit, lengths, per_step
        )
        self.steps_per_epoch = self._batches_of(len(self._order)) // options.accumulation
        """Optimiser steps of the shortest epoch."""
        self.unused = len(self._order) - self._samples_of(len(self._order))
        """Samples of the shortest epoch that no batch holds: always fewer than one optimiser step takes."""
        self.wait_seconds = 0.0
        """Time that the consumer spent waiting for data so far."""
        self._idle: list[Ring] = []
        self._other_phrases = OtherPhrases()
        self._report_samples(per_step)

    def _batches_of(self, samples: int) -> int:
        """Batches that each process gets in an epoch of so many samples: whole steps of the training part."""
        if self._options.part == "holdout":
            return -(-samples // self._batch_samples)
        accumulation = self._options.accumulation
        return samples // (self._batch_samples * accumulation) * accumulation

    def _samples_of(self, samples: int) -> int:
        """Samples that the batches of an epoch of so many samples hold."""
        return min(samples, self._batches_of(samples) * self._batch_samples)

    def _report_samples(self, least: int) -> None:
        """Log how many samples there are; raise `UserError` where they are fewer than `least`."""
        options = self._options
        count = len(self._order)
        left_out = self._order.left_out
        without = f"{left_out} without {NEEDED[options.need]}" if options.need else ""
        if count < least:
            not_chosen = f", {self._order.not_chosen} of which data.where chooses nothing" if options.where else ""
            available = f"{count} samples" + not_chosen + (f", and {without}" if left_out else "")
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
            *(options.part, count, self._batches_of(count), self.unused),
        )

    @property
    def left_out(self) -> int:
        """Samples of this part without what is needed."""
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
        batches = self._batches_of(len(order))
        first = consumed // together
        ring = self._idle.pop() if self._idle else self._new_ring()
        pending: deque[_Submitted] = deque()
        pool = ThreadPoolExecutor(options.threads, "shards") if options.threads else _ImmediateExecutor()
        depth = options.prefetch if options.threads else 0
        plans = BatchPlans(lambda number: self._plan(self._own(order, number), epoch))
        upcoming = iter(range(first, batches))
        planned = 0
        ahead = self._ahead(order[first * together : self._samples_of(len(order))], epoch)
        counts: Counter[str] = Counter()
        used = ring.turn
        copied: tuple[Batch, Event] | None = None
        try:
            for done in range(first, batches):
                started = time.perf_counter()
                plans.forget(done - 1)
                while len(pending) <= depth and (number := next(upcoming, None)) is not None:
                    buffers = ring.next()
                    pending.append(_Submitted(buffers, number, pool.submit(self._decode, pool, buffers, plans, number)))
                if options.threads and options.accumulation > depth:  # plans are needed when their step begins
                    for number in range(max(planned, done + depth + 1), min(done + options.accumulation + 1, batches)):
                        pool.submit(plans.of, number)
                        planned = number + 1
                if done == first or done % options.accumulation == 0:
                    counts = self._counts_of_step(plans, done)
                at = partial(self._place, epoch=epoch, samples=len(order))
                submitted = pending.popleft()
                if not options.copies:
                    batch = self._batch(pool, submitted, plans, step_counts=counts, **at(done))
                else:
                    batch, event = copied or self._copied(options.copies, pool, submitted, plans, **at(done))
                    options.copies.use(batch, event)
                    batch = replace(batch, step_counts=counts)
                    copied = None
                    if pending and pending[0].is_decoded():
                        copied = self._copied(options.copies, pool, pending[0], plans, **at(done + 1))
                self.wait_seconds += time.perf_counter() - started
                used += 1
                if ahead:
                    ahead.consumed((done + 1 - first) * together)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if ahead:
                ahead.close()
            ring.turn = used  # the batch that the consumer may still read is the last one that is written to
            if options.part == "train":  # the held-out part is read too rarely to keep its memory
                self._idle.append(ring)

    def _batch(self, pool: Executor, submitted: _Submitted, plans: BatchPlans, **known: Any) -> Batch:
        """Return a batch that was submitted, when it is decoded; `known` holds other fields of it."""
        buffers, number, task = submitted
        parts = task.result()
        if parts is None:
            buffers.make_room(self._decoder.rows(plans.of(number)))
            parts = self._decode(pool, buffers, plans, number)
        for part in parts or ():
            part.result()
        return self._decoder.batch(buffers, plans.of(number), **known)

    def _copied(
        self, copies: Copies[Batch], pool: Executor, submitted: _Submitted, plans: BatchPlans, **known: Any
    ) -> tuple[Batch, Event]:
        """Begin to copy a batch that was submitted."""
        batch, event = copies.begin(self._batch(pool, submitted, plans, **known))
        submitted.buffers.copied = event
        return batch, event

    def _place(self, number: int, *, epoch: int, samples: int) -> dict[str, Any]:
        """Return the `position` and `is_padding` of batch `number` in an epoch of so many samples."""
        position = {"epoch": epoch, "samples": (number + 1) * self._batch_samples}
        return {"position": position, "is_padding": self._group(number) * self._options.batch_size >= samples}

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

    def _counts_of_step(self, plans: BatchPlans, done: int) -> Counter[str]:
        """Sum the counts of this process's batches in the optimiser step of batch `done`, from that batch on.

        Losses are divided by them before the step's last batches are decoded.
        """
        accumulation = self._options.accumulation
        counts: Counter[str] = Counter()
        for number in range(done, (done // accumulation + 1) * accumulation):
            counts.update(self._decoder.counts(plans.of(number)))
        return counts

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

        def following() -> NDArray[np.int64]:
            upcoming = self.order(epoch + 1)
            return upcoming[: self._samples_of(len(upcoming))]

        return ShardFetcher(
            self._sets,
            starts,
            order,
            depth=2 * SHUFFLE_WINDOW,
            fetches=fetches,
            following=following,
        )

    def _new_ring(self) -> Ring:
        return Ring([self._decoder.new_buffers() for _ in range(self._options.prefetch + 2)])

    def _decode(self, pool: Executor, buffers: Buffers, plans: BatchPlans, number: int) -> list[Future[None]] | None:
        """Plan and decode batch `number`; return what other threads do of it.

        None: it is planned alone, for `buffers` have no room for it, which the main thread has to make.
        """
        made = plans.of(number)
        if not buffers.has_room(self._decoder.rows(made)):
            return None
        places = self._decoder.places(made)
        own, *others = self._parts(len(made))
        left = [pool.submit(self._fill, buffers, places[part], made[part]) for part in others]
        self._fill(buffers, places[own], made[own])
        return left

    def _parts(self, count: int) -> list[slice]:
        """Divide `count` samples into runs, enough of them in all batches that are decoded ahead for each thread."""
        runs = -(-max(1, self._options.threads) // max(1, self._options.prefetch))
        size = -(-count // runs)
        return [slice(begin, begin + size) for begin in range(0, count, size)]

    def _plan(self, positions: list[int], epoch: int) -> list[Any]:
        """Plan what an epoch takes of the samples at these positions."""
        plans = []
        for position in positions:
            entry, number = self._order.locate(position)
            visit = SampleVisit(
                sample=entry.shards.open(number, compare_later=True),
                source=entry.shards.manifest.source,
                epoch=epoch,
                number=self._order.visits(position, epoch),
                copy=entry.copy,
                other_phrase=partial(self._other_phrases.draw, entry, number),
                chosen=entry.chosen(number),
                texts=entry.texts(number),
            )
            try:
                plans.append(self._decoder.plan(visit))
            except Exception:
                visit.sample.compare_now()  # changed bytes are the better reason to give
                raise
        return plans

    def _fill(self, buffers: Buffers, places: list[Place], plans: list[Any]) -> None:
        """Decode samples to their places, and detach them: a batch, which may live long, keeps no tar mapped."""
        self._decoder.fill(buffers, places, plans)
        for plan in plans:
            plan.sample.detach()


def _open_entries(paths: Sequence[str], options: LoaderOptions) -> list[Entry]:
    """Open the shard sets that are read, and repeat those that come several times in an epoch."""
    if not paths:
        raise UserError("no shard folder given", where="data.shards", do="for example data.shards=[shards/sav]")
    sets = open_sets(paths, options.cache, options.check)
    names = {shards.manifest.source for shards in sets}
    kinds = options.conversations.kinds if options.conversations else {}
    repeated = [name for name, repeats in options.repeats.items() if repeats]
    for where, asked in (("data.sources", repeated), ("mix", options.sources), ("conversation.kinds", kinds)):
        if unknown := sorted({*asked} - names):
            known = ", ".join(sorted(names))
            do = f"leave it out, such as data.sources.{unknown[0]}=0" if where == "data.sources" else ""
            raise UserError("no shards of this source", where=where, met=", ".join(unknown), wanted=known, do=do)
    check_sources("data.where", options.where, names)
    check_sources("data.texts", options.texts, names)
    parts = held_out_parts(sets, options.holdout, options.holdout_by)  # whatever `where` says
    read = [
        (shards, part)
        for shards, part in zip(sets, parts, strict=True)
        if (not options.sources or shards.manifest.source in options.sources)
        and options.repeats.get(shards.manifest.source, 1)
    ]
    if not read:
        raise UserError(
            "every source is left out", where="data.sources", wanted="a source that comes more than 0 times"
        )
    recipe = read[0][0].recipe
    for shards, _ in read[1:]:
        if shards.recipe.digest != recipe.digest:
            where = str(shards.folder)
            raise UserError("shards of different recipes", where=where, met=str(shards.recipe), wanted=str(recipe))
    entries = []
    for shards, part in read:
        repeats = options.repeats.get(shards.manifest.source, 1) if options.part == "train" else 1
        entries += entries_of(shards, part, repeats, select(shards, options.where, options.texts))
    return entries


def _decoder_for(options: LoaderOptions, recipe: Recipe) -> Decoder[Any]:
    """Return the decoder of what the options ask for."""
    buffers = options.prefetch + 2
    pin = options.copies is not None
    if options.conversations:
        return ConversationDecoder(
            recipe,
            options.conversations,
            options.kind,
            options.prompts,
            options.normalise,
            pin,
            buffers,
        )
    return PairDecoder(
        [_frame_field(name) for name in options.fields],
        recipe,
        options.batch_size,
        options.objects_per_sample,
        options.need,
        options.seed,
        options.normalise,
        pin,
        buffers,
    )


class BatchPlans:
    """Plans of an epoch's batches, each made once, by the thread that needs it first.

    Args:
        make: makes the plans of a batch, one per sample.
    """

    def __init__(self, make: Callable[[int], list[Any]]) -> None:
        self._make = make
        self._plans: dict[int, list[Any]] = {}
        self._locks: dict[int, Lock] = {}

    def of(self, number: int) -> list[Any]:
        """Return the plans of batch `number`."""
        with self._locks.setdefault(number, Lock()):
            if number not in self._plans:
                self._plans[number] = self._make(number)
            return self._plans[number]

    def forget(self, number: int) -> None:
        """Forget the plans of batch `number`."""
        self._plans.pop(number, None)
        self._locks.pop(number, None)


class _Submitted(NamedTuple):
    """A batch that is being decoded."""

    buffers: Buffers
    number: int
    task: Future[list[Future[None]] | None]
    """The call of `Loader._decode`."""

    def is_decoded(self) -> bool:
        """Return whether it is decoded, without an error."""
        if not _is_good(self.task):
            return False
        parts = self.task.result()
        return parts is not None and all(map(_is_good, parts))


def _is_good(task: Future[Any]) -> bool:
    return task.done() and not task.exception()


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
