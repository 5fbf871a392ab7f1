"""Conversations, checked before a run: frames of videos, and the tokens and the memory that rows take."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from shards.reader import ShardSet
from trainer.config import Config
from trainer.data.batch import ConversationBatch
from trainer.data.loader import Loader
from trainer.data.order import usable_samples
from trainer.doctor import data
from trainer.doctor.findings import Finding, ok, size, warn
from trainer.doctor.footprint import Footprint
from trainer.loader_options import prompts_of, training_options
from trainer.model.rows import IGNORE
from trainer.objectives import load_objective

_DRAWN_TWICE = 1
"""Frames beyond those that are drawn, up to which they are drawn with replacement (`trainer.conversations.frames`)."""


def check_frames(config: Config, opened: data.Data) -> Iterator[Finding]:
    """Yield for each set of videos with objects how many have too few frames to draw `data.frames` different ones."""
    wanted = config.data.frames
    if wanted == 1:
        return
    for shards in _read_as_conversations(config, opened):
        if "frames" not in (shards.index.dtype.names or ()):
            yield warn(
                "frames", f"{shards.folder}: its index does not say how many frames a sample has; recode the set"
            )
            continue
        frames = shards.index["frames"]
        is_video = (frames > 1) & usable_samples(shards.index, "regions", opened.selections.get(shards.folder))
        few = int((is_video & (frames <= wanted + _DRAWN_TWICE)).sum())
        text = f"{shards.folder}: {int(is_video.sum()):,} videos with objects"
        if few:
            short = f"{few:,} of them have at most {wanted + _DRAWN_TWICE} frames, of which some are drawn twice"
            yield warn("frames", f"{text}; {short} for data.frames={wanted}; shard them with more, such as --frames 16")
        elif is_video.any():
            yield ok("frames", f"{text} of {int(frames[is_video].min())} frames or more, {wanted} drawn of each")


def check_rows(config: Config, opened: data.Data, footprint: Footprint) -> Iterator[Finding]:
    """Yield the tokens of the first rows of each objective, and about what the language model needs for a batch.

    Raises:
        UserError: the tokenizer or a sample cannot be read.
    """
    prompts = prompts_of(config)
    if prompts is None or opened.faults:
        return
    for name in config.objectives():
        if not load_objective(name).reads_conversations:
            continue
        loader = Loader(config.data.shards, training_options(config, name, prompts, threads=0, prefetch=0))
        batches = islice(loader.epoch(0), -(-data.PROBED // config.batch_size))
        probed = [_Probe(batch, config.packing) for batch in batches if isinstance(batch, ConversationBatch)]
        rows = [length for probe in probed for length in probe.lengths]
        if not rows:
            yield warn("rows", f"{name}: nothing could be asked of the first {len(probed)} batches")
            continue
        largest = max(probed, key=lambda probe: probe.tokens)
        activations = footprint.activations(largest.tokens, largest.trained, config)
        text = f"{name}, {len(rows)} rows of the first batches: {sum(rows) / len(rows):,.0f} tokens on average, at most"
        padding = "" if config.packing else " with padding"
        text += f" {max(rows):,}; a batch has at most {largest.tokens:,}{padding}, of {largest.pictures} pictures, and"
        text += f" {max(probe.masks for probe in probed)} masks; for these tokens the language model keeps about"
        yield ok("rows", f"{text} {size(activations)} of activations")


class _Probe:
    """Numbers of a batch: its tensors lie in buffers that the next one uses."""

    def __init__(self, batch: ConversationBatch, packing: bool) -> None:
        self.lengths = [len(row.ids) for row in batch.rows]
        self.tokens = sum(self.lengths) if packing else len(batch.rows) * max(self.lengths, default=0)
        self.trained = sum(label != IGNORE for row in batch.rows for label in row.labels[1:])
        self.pictures = 0 if batch.pixel_values is None else len(batch.pixel_values)
        self.masks = len(batch.seg_of_mask)


def _read_as_conversations(config: Config, opened: data.Data) -> Iterator[ShardSet]:
    """Yield the sets that an objective reads as conversations."""
    entries = [entry for name, entry in config.objectives().items() if load_objective(name).reads_conversations]
    for shards in opened.sets:
        source = shards.manifest.source
        is_left_out = config.data.sources.get(source, 1) == 0
        if not is_left_out and any(not entry.sources or source in entry.sources for entry in entries):
            yield shards
