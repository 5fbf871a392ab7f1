"""The batches of each optimiser step, and the position in the data that they lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping

from torch.profiler import record_function

from trainer.data.batch import Batch, ConversationBatch, Position
from trainer.data.loader import Loader


class Stream:
    """Endless batches, one epoch after another, an optimiser step at a time.

    Args:
        loaders: by objective.
        accumulation: batches per optimiser step of each loader.
        consumed: the `position` to go on from; None: the beginning.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], accumulation: int, consumed: Mapping[str, Position] | None = None
    ) -> None:
        beginning = {name: {"epoch": 0, "samples": 0} for name in loaders}
        self.position = {name: dict((consumed or beginning)[name]) for name in loaders}
        """What has been consumed, by objective; batches that were only decoded ahead do not count."""
        self.on_batch: Callable[[], object] = lambda: None
        """Called when a batch has been taken from a loader."""
        self.notes: Counter[str] = Counter()
        """What the conversations of this process asked for and what was left out, by objective and what it is."""
        self._loaders = loaders
        self._accumulation = accumulation
        self._first: dict[str, Batch] = {}
        self._batches = {name: _endless(loader, self.position[name]) for name, loader in loaders.items()}

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer spent waiting for data so far."""
        return sum(loader.wait_seconds for loader in self._loaders.values())

    def _take(self, batches: Iterator[Batch]) -> Batch:
        with record_function("data_wait"):
            batch = next(batches)
        self.on_batch()
        return batch

    def close(self) -> None:
        """End the threads that decode ahead."""
        for batches in self._batches.values():
            batches.close()

    def counts(self) -> dict[str, Mapping[str, int]]:
        """Units in this process's batches of the next optimiser step, by objective; see `Batch.counts`."""
        for name, batches in self._batches.items():
            if name not in self._first:
                self._first[name] = self._take(batches)
        return {name: batch.step_counts for name, batch in self._first.items()}

    def step(self) -> Iterator[tuple[str, Batch]]:
        """Yield (objective, batch) for one optimiser step. A batch counts as consumed when the next is asked for."""
        for name, batches in self._batches.items():
            for _ in range(self._accumulation):
                batch = self._first.pop(name, None) or self._take(batches)
                yield name, batch
                self.position[name] = batch.position
                if isinstance(batch, ConversationBatch):
                    self.notes.update({f"{name}: {what}": count for what, count in batch.notes.items()})


def _endless(loader: Loader, start: Position) -> Generator[Batch, None, None]:
    """Batches of one epoch after another; each epoch has equally many on every process."""
    epoch = start["epoch"]
    consumed = start["samples"]
    while True:
        yield from loader.epoch(epoch, consumed)
        epoch = epoch + 1
        consumed = 0
