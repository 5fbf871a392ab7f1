"""The datasets of benchmarks: what is asked about each picture, and the truth at the picture's own size.

They are read with the sources of `pipeline/`, as for training.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cropped import Bool
from pipeline.raw import RawSample
from pipeline.records import Records, RecordsWriter
from pipeline.resize import UInt8
from pipeline.sources import choices_of, source_named
from shards.errors import BadInput, UserError


@dataclass(frozen=True)
class Item:
    """A question that is asked by itself."""

    id: str
    """Unique in the split."""
    phrase: str
    """The text of the dataset that the question is made of."""
    question: str
    """With `<image>`, which the picture replaces."""
    objects: tuple[str, ...] = ()
    """Ids of the objects whose union is the true answer; () for an expression of no object."""


@dataclass(frozen=True)
class AskedPicture:
    """A picture with its items."""

    path: str
    """Relative to the root."""
    items: tuple[Item, ...]
    size: tuple[int, int] | None = None
    """(H, W), where the annotations say it."""


@dataclass(frozen=True)
class Truth:
    """A decoded picture (H, W, 3) uint8 with the true answers to its items."""

    picture: UInt8
    masks: Mapping[str, Bool]
    """(H, W) of each item by its id, without those that cannot be measured."""
    ignored: Bool | None = None
    """(H, W), pixels that count neither for nor against an answer."""


class Benchmark(ABC):
    """A dataset that models are measured on.

    Args:
        name: the source's name.
    """

    published: Mapping[str, int | None]
    """Published number of items of each split that may be measured; None where none is known."""
    no_target: bool = False
    """Whether some items have no object, so that N-acc and T-acc are measured."""
    questions: Sequence[str]
    """The questions, with {} in place of the phrase."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        """Yield the items of a picture.

        Args:
            parts: what the source attached to the input.

        Raises:
            BadInput: the picture's annotation is broken.
        """

    def truth(self, sample: RawSample, asked: AskedPicture) -> Truth:
        """Return the true answers. Items are left out where an object of theirs has no usable mask."""
        frame = sample.frames[0]
        masks = {item.id: mask for item, mask in zip(sample.objects, frame.masks, strict=True)}
        found = {}
        for item in asked.items:
            if all(number in masks for number in item.objects):
                union = np.zeros((frame.picture.height, frame.picture.width), np.bool_)
                for number in item.objects:
                    union |= np.asarray(masks[number])
                found[item.id] = union
        return Truth(np.asarray(frame.picture), found)

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        """Return (H, W) of a picture where the annotations say it."""
        return None


@dataclass(frozen=True)
class OpenBenchmark:
    """A split of a benchmark, found below a root."""

    benchmark: Benchmark
    root: Path
    split: str
    pictures: tuple[AskedPicture, ...]
    """In the order of their paths; each has an item."""
    unread: Mapping[str, BadInput]
    """Path of each picture whose annotation is broken, with the reason."""
    records: Records
    options: Mapping[str, Any]

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(len(picture.items) for picture in self.pictures)

    def read(self, asked: AskedPicture) -> Truth:
        """Decode a picture and the true masks of its items.

        Raises:
            BadInput: the picture cannot be read.
        """
        source = source_named(self.benchmark.name)
        parts = self.records.parts(asked.path)
        return self.benchmark.truth(source.load(self.root, asked.path, self.options, parts), asked)

    def first(self, number: int | None) -> OpenBenchmark:
        """Return the benchmark with only its first `number` items; None: all."""
        if number is None:
            return self
        kept: list[AskedPicture] = []
        left = number
        for picture in self.pictures:
            items = picture.items[:left]
            left -= len(items)
            if items:
                kept.append(AskedPicture(picture.path, items, picture.size))
        return OpenBenchmark(
            self.benchmark, self.root, self.split, tuple(kept), self.unread, self.records, self.options
        )


@contextmanager
def opened(benchmark: Benchmark, root: Path, split: str) -> Iterator[OpenBenchmark]:
    """Find the pictures of a split and their items.

    Args:
        root: the folder that `shard --root` takes; or the one that holds Sa2VA's data, with `ref_seg` in it.

    Raises:
        UserError: no such split, data that is not there or broken, or an item listed twice.
    """
    if split not in benchmark.published:
        wanted = " or ".join(benchmark.published)
        raise UserError("no such split", where=benchmark.name, met=split, wanted=wanted, do="give --split")
    nested = root / "ref_seg" / benchmark.name
    place = nested if nested.is_dir() else root
    source = source_named(benchmark.name)
    options = choices_of(source, {"split": split})
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder) / "records.sqlite"
        with RecordsWriter(file) as writer:
            source.find(place, options, writer)
        records = Records(file)
        pictures = []
        unread = {}
        ids: set[str] = set()
        for found in records.inputs():
            parts = records.parts(found.path)
            try:
                items = tuple(benchmark.items_of(place, found.path, parts))
            except BadInput as error:
                unread[found.path] = error
                continue
            for item in items:
                if item.id in ids:
                    raise UserError("an item listed twice", where=benchmark.name, met=f"{item.id} of {found.path}")
                ids.add(item.id)
            if items:
                pictures.append(AskedPicture(found.path, items, benchmark.size_of(parts)))
        if not pictures:
            raise UserError("nothing is asked", where=str(root), met=f"{len(unread)} pictures that cannot be read")
        yield OpenBenchmark(benchmark, place, split, tuple(pictures), unread, records, options)
