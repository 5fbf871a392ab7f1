"""Show the rows that a training reads: their text with the trained tokens marked, regions, masks and lengths."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Any

from rich.text import Text

from shards.printable import printable, printable_lines
from shards.tables import plain_console
from trainer.config import load_config
from trainer.data.batch import ConversationBatch, required
from trainer.data.loader import Loader
from trainer.doctor.machine import count_processes
from trainer.loader_options import training_options
from trainer.model.prompts import Prompts
from trainer.model.rows import IGNORE, TokenRow, count_labels
from trainer.objectives import load_objective
from trainer.trained import base_prompts

_TRAINED = "bold green"
_PIXELS = 1024 * 1024
"""Of a mask."""


@dataclass(frozen=True)
class ShownTarget:
    """What one `[SEG]` must produce."""

    phrase: str
    objects: list[Any]
    """Ids of the objects whose union it is."""
    pixels: list[int]
    """Pixels of the mask, of 1024 x 1024, in each frame of the row."""


@dataclass(frozen=True)
class ShownRow:
    """A row of the language model with what belongs to it."""

    objective: str
    key: str
    source: str
    kind: str
    frames: list[int]
    """Numbers of the sample's frames, from 1."""
    row: TokenRow
    regions: list[tuple[Any, int]]
    """Id of each region's object, and its cells."""
    targets: list[ShownTarget]

    def to_json(self, prompts: Prompts) -> dict[str, Any]:
        """Return the row for machines to read: `text` is as people see it, `ids` and `labels` are what is trained."""
        return {
            "objective": self.objective,
            "sample": self.key,
            "source": self.source,
            "kind": self.kind,
            "frames": self.frames,
            "tokens": len(self.row.ids),
            "trained_tokens": count_labels(self.row),
            "text": [{"text": prompts.shown(ids), "trained": trained} for trained, ids in _pieces(self.row)],
            "regions": [{"object": name, "cells": cells} for name, cells in self.regions],
            "segs": [vars(target) for target in self.targets],
            "ids": self.row.ids,
            "labels": self.row.labels,
        }

    def lines(self, prompts: Prompts, coloured: bool) -> Iterator[Text]:
        """Yield the row for people to read; trained tokens are green, or in double braces."""
        frames = f", frames {_listed(self.frames)}" if self.frames else ", no picture"
        head = f"{self.objective}: {self.key} of {self.source}, kind {self.kind}{frames}"
        yield Text(
            f"{printable(head)}; {len(self.row.ids):,} tokens, {count_labels(self.row):,} of them trained", "bold"
        )
        text = Text()
        for trained, ids in _pieces(self.row):
            shown = printable_lines(prompts.shown(ids))
            if not trained:
                text.append(shown)
            elif coloured:
                text.append(shown, _TRAINED)
            else:
                text.append(f"{{{{{shown}}}}}")
        text.rstrip()
        yield from text.split("\n")
        for number, (name, cells) in enumerate(self.regions, 1):
            yield Text(f"region{number}: object {printable(str(name))}, {cells} cells in frame {self.frames[-1]}")
        for number, target in enumerate(self.targets, 1):
            objects = f"objects {_listed(target.objects)}" if target.objects else "no object"
            areas = ", ".join(
                f"{pixels / _PIXELS:.2%} of frame {frame}" if pixels else f"not in frame {frame}"
                for frame, pixels in zip(self.frames, target.pixels, strict=True)
            )
            yield Text(f"[SEG] {number}: {printable(target.phrase)!r}, {printable(objects)}; {areas}")


def show_rows(arguments: Sequence[str], number: int, as_json: bool) -> None:
    """Print the first rows of each objective of the run that `trainer/train.py` would start with these arguments.

    Objectives on pairs of frames make their rows during the step: this is said in a line, as is what `data.where`
    chooses.

    Raises:
        UserError: a mistake in the configuration, or shards or a tokenizer that cannot be read.
    """
    config = load_config(arguments)
    prompts = base_prompts(config.model)
    console = plain_console()
    found = []
    said: set[str] = set()
    for name in config.objectives():
        if not load_objective(name).reads_conversations:
            print(f"{name}: its rows are made during the step", file=sys.stderr)
            continue
        options = training_options(config, name, prompts, accumulation=config.accumulation * count_processes())
        loader = Loader(config.data.shards, options)
        for chosen in loader.selected:
            if chosen not in said:
                print(printable(chosen), file=sys.stderr)
        said.update(loader.selected)
        rows = islice(_rows(loader, name), number)
        if as_json:
            found += [row.to_json(prompts) for row in rows]
            continue
        for row in rows:
            for line in row.lines(prompts, coloured=console.color_system is not None):
                console.print(line, soft_wrap=True)
            console.print()
    if as_json:
        print(json.dumps(found))


def _rows(loader: Loader, objective: str) -> Iterator[ShownRow]:
    """Yield the rows of an objective in the order in which a run reads them, epoch after epoch."""
    for epoch in count():
        empty = True
        for batch in loader.epoch(epoch):
            assert isinstance(batch, ConversationBatch)
            for row in shown_rows(batch, objective):
                empty = False
                yield row
        if empty:
            return


def shown_rows(batch: ConversationBatch, objective: str) -> Iterator[ShownRow]:
    """Yield the rows of a batch, whose masks are bool, in order."""
    segs = [(row, seg) for row, talk in enumerate(batch.conversations) for seg in range(len(talk.targets))]
    areas: dict[tuple[int, int], list[int]] = {place: [] for place in segs}
    for number, seg in enumerate(batch.seg_of_mask.tolist()):  # by row, then by frame
        areas[segs[seg]].append(int(required(batch.masks)[number].sum()))
    for number, (talk, row) in enumerate(zip(batch.conversations, batch.rows, strict=True)):
        sample = batch.sample_of_row[number]
        meta = batch.meta[sample]
        ids = [item["id"] for item in meta["objects"]]
        cells = batch.regions[number, : len(talk.regions)].flatten(1).sum(1).tolist()
        yield ShownRow(
            objective=objective,
            key=batch.keys[sample],
            source=meta["source"],
            kind=talk.kind,
            frames=[frame + 1 for frame in talk.frames],
            row=row,
            regions=[(ids[at], count) for at, count in zip(talk.regions, cells, strict=True)],
            targets=[
                ShownTarget(target.phrase, [ids[at] for at in target.objects], areas[number, seg])
                for seg, target in enumerate(talk.targets)
            ],
        )


def _pieces(row: TokenRow) -> Iterator[tuple[bool, list[int]]]:
    """Yield runs of tokens that are all trained, or all not."""
    for trained, run in groupby(zip(row.ids, row.labels, strict=True), lambda pair: pair[1] != IGNORE):
        yield trained, [token for token, _ in run]


def _listed(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))
