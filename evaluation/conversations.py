"""Read shard sets for evaluation as conversations: all that the texts of a sample ask for, once.

A row asks for one phrase, or holds one caption, one conversation or the description of one region. Groups of samples
are those of `evaluation.items`; a batch holds rows of one group alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import numpy as np

from evaluation.items import (
    EVERYTHING,
    GROUPS_AHEAD,
    NO_OBJECT,
    NO_REGION,
    NO_TEXT,
    THREADS,
    SampleRef,
    Selections,
)
from shards.ahead import run_ahead
from shards.reader import ShardSet
from trainer.conversations.conversation import Conversation
from trainer.conversations.kinds.chat import TURNS
from trainer.conversations.kinds.describe import DESCRIPTIONS, description
from trainer.conversations.kinds.grounded_caption import PHRASES as PHRASES_OF_CAPTIONS
from trainer.conversations.kinds.regions import TURNS as TURNS_OF_REGIONS
from trainer.conversations.kinds.segment import NO_TARGET, PHRASES, SEVERAL, ask_for
from trainer.conversations.make import make_conversations
from trainer.conversations.options import ConversationOptions, NoTarget
from trainer.conversations.phrases import Phrase
from trainer.conversations.sample import SampleTexts
from trainer.conversations.visit import Visit
from trainer.data.batch import ConversationBatch
from trainer.data.conversation_decoder import ConversationDecoder, ConversationPlan, PlannedRow
from trainer.data.decoding import Buffers, Ring
from trainer.model.prompts import Prompts

"""Groups that are planned, and batches that are decoded, while one is in use."""
_EVERY = 10**6
_ASKED = {PHRASES, SEVERAL, NO_TARGET, DESCRIPTIONS, PHRASES_OF_CAPTIONS, TURNS, TURNS_OF_REGIONS}
"""Counts of what is asked; the other counts of `make_conversations` are of what is left out."""


@dataclass(frozen=True)
class AskedSample:
    """A sample and the rows that ask about it."""

    shards: ShardSet
    plan: ConversationPlan
    left_out: Counter[str]
    """How much cannot be asked, by reason."""


class ConversationReader:
    """Makes batches of conversations of the samples of groups.

    Args:
        shards: one of the sets; all have its recipe.
        kind: a key of `KINDS`; None: the one that fits each sample.
        prompts: of the model.
        size: most rows per batch, and most pictures in which masks are predicted, unless one row has more.
        frames: frames of a video in a row, evenly spread.
        no_target: what the true answer to an expression of no object is.
        selections: the objects that are asked about, and their texts.
    """

    def __init__(
        self,
        shards: ShardSet,
        kind: str | None,
        prompts: Prompts,
        size: int,
        frames: int,
        no_target: NoTarget,
        selections: Selections = EVERYTHING,
    ) -> None:
        self._selections = selections
        self._kind = kind
        self._size = size
        self._options = ConversationOptions(
            phrases=_EVERY, one_phrase_per_row=True, frames=frames, no_target=no_target, vary_wording=False
        )
        self._decoder = ConversationDecoder(
            shards.recipe, self._options, kind, prompts, normalise="host", pin=False, buffers=GROUPS_AHEAD + 2
        )
        self._ring = Ring([self._decoder.new_buffers() for _ in range(GROUPS_AHEAD + 2)])

    def read(
        self, groups: Sequence[Sequence[SampleRef]]
    ) -> Iterator[tuple[list[AskedSample], Iterator[tuple[ConversationBatch, list[str]]]]]:
        """Yield the samples of one group after the other, and their batches with the source of each row.

        Raises:
            BadShard: a sample cannot be read.
        """
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")
        try:
            calls = ([partial(self._ask, *sample) for sample in group] for group in groups)
            for samples in run_ahead(pool, calls, GROUPS_AHEAD):
                yield samples, self._batches(pool, samples)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batches(self, pool: Executor, samples: Sequence[AskedSample]) -> Iterator[tuple[ConversationBatch, list[str]]]:
        parts = ([partial(self._batch, self._ring.next(), part)] for part in self._parts(samples))
        return (batch for [batch] in run_ahead(pool, parts, GROUPS_AHEAD))

    def _parts(self, samples: Sequence[AskedSample]) -> Iterator[list[AskedSample]]:
        """Divide the rows of samples into batches: samples, each with its rows in the batch."""
        part: dict[int, list[PlannedRow]] = {}
        pictures: set[tuple[int, int]] = set()
        for number, sample in enumerate(samples):
            for row in sample.plan.rows:
                together = pictures | {(number, frame) for frame in row.predicted}
                if part and (sum(map(len, part.values())) == self._size or len(together) > self._size):
                    yield [_with_rows(samples[n], rows) for n, rows in part.items()]
                    part = {}
                    together = {(number, frame) for frame in row.predicted}
                part.setdefault(number, []).append(row)
                pictures = together
        if part:
            yield [_with_rows(samples[n], rows) for n, rows in part.items()]

    def _batch(self, buffers: Buffers, samples: Sequence[AskedSample]) -> tuple[ConversationBatch, list[str]]:
        plans = [sample.plan for sample in samples]
        buffers.make_room(self._decoder.rows(plans))
        self._decoder.fill(buffers, self._decoder.places(plans), plans)
        batch = self._decoder.batch(buffers, plans)
        sources = [sample.shards.manifest.source for sample in samples for _ in sample.plan.rows]
        return batch, sources

    def _ask(self, shards: ShardSet, position: int) -> AskedSample:
        """Plan the rows that ask about a sample."""
        stored = shards.open(position)
        cells = self._decoder.prompt_masks(stored)
        selection = self._selections.get(shards)
        chosen = None if selection is None else selection.of(position)
        joined = None if selection is None else selection.texts_of(position)
        counts = cells.sum(axis=(2, 3), dtype=np.int64)
        texts = SampleTexts(stored.key, shards.manifest.source, stored.meta, counts, chosen, joined)
        left_out = Counter[str]()
        ask = self._about_objects if self._kind in ("segment", "describe") else self._all_kinds
        rows = self._decoder.rows_of(stored.key, [*ask(texts, left_out)], cells, left_out)
        return AskedSample(shards, ConversationPlan.of(stored, rows), +left_out)

    def _all_kinds(self, texts: SampleTexts, left_out: Counter[str]) -> Iterator[Conversation]:
        """Visit a sample until nothing new is asked."""
        seen: set[Conversation] = set()
        for visit in range(_EVERY):
            conversations, notes = make_conversations(
                texts, self._options, epoch=0, visit=visit, copy=0, other_phrase=_no_other, kind=self._kind
            )
            left_out |= Counter({name: count for name, count in notes.items() if name not in _ASKED})
            spread = (self._spread(talk, texts.frames) for talk in conversations)
            new = [talk for talk in spread if talk not in seen]
            if not new:
                return
            yield from new
            seen.update(new)

    def _spread(self, talk: Conversation, count: int) -> Conversation:
        """Let a row that shows a video of `count` frames show frames that are spread evenly over it, each once."""
        most = min(count, self._options.frames)
        if most < 2 or talk.regions:  # one frame is one that shows the objects
            return talk
        return replace(talk, frames=tuple((2 * part + 1) * count // (2 * most) for part in range(most)))

    def _about_objects(self, texts: SampleTexts, left_out: Counter[str]) -> Iterator[Conversation]:
        """Ask for each object with each of its texts, or for each of its texts, in the first frame that shows it."""
        visit = Visit(texts, self._options, 0, Random(0), _no_other, Counter())
        objects = texts.meta["objects"]
        left_out[NO_OBJECT] += not objects
        for number in texts.objects:
            showing = np.flatnonzero(texts.cells[:, number]).tolist()
            if not texts.texts(number):
                left_out[NO_TEXT] += 1
            elif self._kind == "segment":
                for text in texts.texts(number):
                    phrase = Phrase(text, (number,), texts.is_sentence(number, text))
                    yield from ask_for("segment", visit, [phrase], (showing[0] if showing else 0,))
            elif not showing:
                left_out[NO_REGION] += 1
            else:
                for text in texts.texts(number):
                    yield description(number, text, showing[0])


def _no_other(draws: Random) -> None:
    return None


def _with_rows(sample: AskedSample, rows: Sequence[PlannedRow]) -> AskedSample:
    return replace(sample, plan=ConversationPlan.of(sample.plan.sample, rows))
