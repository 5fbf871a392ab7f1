"""The datasets of benchmarks: what is asked about each picture or video, and the truth at its own size.

They are read with the sources of `pipeline/`, as for training.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.published.measures import Float, Int, Measure
from evaluation.published.predictions import Prediction
from pipeline.cropped import Bool
from pipeline.records import Records, RecordsWriter
from pipeline.resize import UInt8
from pipeline.sources import Source, choices_of, source_named
from shards.errors import BadInput, UserError

if TYPE_CHECKING:
    from evaluation.published.judge import Judge
    from inference.predictor import Predictor


@dataclass(frozen=True)
class Item:
    """A question that is asked by itself."""

    id: str
    """Unique in the split."""
    phrase: str
    """The text of the dataset that the question is made of."""
    question: str
    """With `<image>`, which the picture or the frames replace."""
    objects: tuple[str, ...] = ()
    """Ids of the objects whose union is the true answer; () for an expression of no object."""
    kind: int = 0
    """Part of the dataset that the item belongs to, where measures differ by it."""


@dataclass(frozen=True)
class Asked:
    """A picture or a video with its items."""

    path: str
    """Relative to the root."""
    items: tuple[Item, ...]
    size: tuple[int, int] | None = None
    """(H, W) of a picture, where the annotations say it."""


@dataclass(frozen=True)
class View:
    """A picture, or a frame of a video, with what an answer covers of the truth."""

    label: str
    picture: UInt8
    """(H, W, 3)."""
    answer: Bool
    """(H, W)."""
    truth: Bool
    """(H, W)."""
    ignored: Bool | None = None
    """(H, W), pixels that count neither for nor against an answer."""


@dataclass(frozen=True)
class Options:
    """How texts are asked for and measured."""

    text_model: Path | None = None
    """Folder of a model of texts, for the recall of gcg; None: recall is not measured."""
    blanks: bool = False
    """Ask gcg with the run of blanks in the question that Sa2VA's script has."""
    judge: Judge | None = None
    """Asked about the descriptions of dlc-bench; None: nothing is sent anywhere."""
    judge_model: str | None = None
    """Whose verdicts count without a judge; None: those that are there."""


class Benchmark(ABC):
    """A dataset that models are measured on. Each family of datasets has its own type of truth.

    Args:
        name: the source's name.
    """

    published: Mapping[str, int | None]
    """Published number of items of each split that may be measured; None where none is known."""
    questions: Sequence[str]
    """The questions, with {} in place of the phrase."""
    units = "pictures"
    """Name of the things that items ask about."""
    batched = True
    """Whether the items of several pictures are answered together."""
    quality_name = "IoU"
    """Name of the quality by which items are ranked."""
    colours: Sequence[tuple[str, str]] = (("right", "right"), ("missed", "missed"), ("wrong", "wrong"))
    """Meaning of a page's colours: the name of each (its class in the page) and its meaning."""
    hidden: frozenset[str] = frozenset()
    """Splits whose truth is not public: a server measures the masks that are handed in."""
    folders: Sequence[str] = ()
    """Folders in which Sa2VA's data holds the dataset, below the root."""
    no_numbers = "whose object has no usable mask"
    """Why `score` returns None for an item."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def source(self) -> Source:
        """The source that reads the dataset."""
        return source_named(self.name)

    def with_options(self, options: Options) -> Benchmark:
        """Return the benchmark with those options that concern it."""
        return self

    def find(self, root: Path, split: str, records: RecordsWriter) -> list[str]:
        """Find the pictures or videos of a split; return notes for the reader of the numbers."""
        self.source.find(root, choices_of(self.source, {"split": split}), records)
        return []

    @abstractmethod
    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        """Yield the items of a picture or a video.

        Args:
            parts: what the source attached to the input.

        Raises:
            BadInput: its annotation is broken.
        """

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        """Return (H, W) of a picture where the annotations say it."""
        return None

    @abstractmethod
    def read(self, opened: OpenBenchmark, asked: Asked) -> Any:
        """Return the truth of a picture or a video; raises `BadInput` where it cannot be read."""

    def settings(self, predictor: Predictor) -> dict[str, str]:
        """Return the model's settings that decide the answers to this family alone."""
        return {}

    @abstractmethod
    def answer(
        self, predictor: Predictor, asked: Sequence[tuple[Asked, Any]], batch_size: int, known: set[str]
    ) -> Iterator[list[Prediction]]:
        """Ask a model about pictures or a video, each with its truth; yield the answers that belong together.

        Args:
            known: ids of items that are answered. They are asked again only where a batch needs them.
        """

    def prepare(
        self, opened: OpenBenchmark, of_item: Mapping[str, Prediction], folder: Path
    ) -> tuple[Benchmark, list[str]]:
        """Get what measuring needs besides the truth; return the benchmark that has it, and notes for the reader.

        Args:
            folder: of the results, which keeps what is got.
        """
        return self, []

    @abstractmethod
    def score(
        self, truth: Any, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        """Return the numbers of each item, from which measures are made; None where it cannot be measured.

        The numbers are () for each item where nothing can be measured.

        Args:
            where: the file of predictions, for messages.

        Raises:
            BadInput: the truth cannot be read.
            UserError: an answer does not fit its picture or video.
        """

    @abstractmethod
    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        """Return the measures of N items.

        Args:
            numbers: (N, K), from `score`.
            kinds: (N,), of the items.
        """

    def whole(
        self, opened: OpenBenchmark, items: Sequence[tuple[Asked, Item]], of_item: Mapping[str, Prediction]
    ) -> Mapping[str, Measure]:
        """Return the measures of N items that need all of them at once: {} for none."""
        return {}

    @abstractmethod
    def quality(self, numbers: Float) -> Float:
        """Return the quality of each item, from 0 to 1: (N,)."""

    def weight(self, numbers: Float) -> Float:
        """Return what ranks items of one quality, the largest first: (N,)."""
        return np.zeros(len(numbers))

    @abstractmethod
    def views(self, truth: Any, item: Item, prediction: Prediction, where: str) -> list[View]:
        """Return what a page shows of an item: its picture, or some frames of its video."""


@dataclass(frozen=True)
class OpenBenchmark:
    """A split of a benchmark, found below a root."""

    benchmark: Benchmark
    root: Path
    split: str
    asked: tuple[Asked, ...]
    """Pictures or videos in the order of their paths; each has an item."""
    unread: Mapping[str, BadInput]
    """Path of each picture or video whose annotation is broken, with the reason."""
    records: Records
    notes: tuple[str, ...] = ()
    """For the reader of the numbers."""

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(len(asked.items) for asked in self.asked)

    def read(self, asked: Asked) -> Any:
        """Return the truth of a picture or a video, as the benchmark's family has it.

        Raises:
            BadInput: it cannot be read.
        """
        return self.benchmark.read(self, asked)

    def first(self, number: int | None) -> OpenBenchmark:
        """Return the benchmark with only its first `number` items; None: all."""
        if number is None:
            return self
        kept: list[Asked] = []
        left = number
        for asked in self.asked:
            items = asked.items[:left]
            left -= len(items)
            if items:
                kept.append(replace(asked, items=items))
        return replace(self, asked=tuple(kept))


@contextmanager
def opened(benchmark: Benchmark, root: Path, split: str) -> Iterator[OpenBenchmark]:
    """Find the pictures or videos of a split and their items.

    Args:
        root: the folder that `shard --root` takes; or the one that holds Sa2VA's data, with `ref_seg` in it.

    Raises:
        UserError: no such split, data that is not there or broken, or an item listed twice.
    """
    if split not in benchmark.published:
        wanted = " or ".join(benchmark.published)
        raise UserError("no such split", where=benchmark.name, met=split, wanted=wanted, do="give --split")
    place = next((root / folder for folder in benchmark.folders if (root / folder).is_dir()), root)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder) / "records.sqlite"
        with RecordsWriter(file) as writer:
            notes = benchmark.find(place, split, writer)
        records = Records(file)
        asked = []
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
                asked.append(Asked(found.path, items, benchmark.size_of(parts)))
        if not asked:
            raise UserError(
                "nothing is asked", where=str(root), met=f"{len(unread)} {benchmark.units} that cannot be read"
            )
        yield OpenBenchmark(benchmark, place, split, tuple(asked), unread, records, tuple(notes))
