"""The batches of each optimiser step, and how much of the data has been consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from trainer.data.loader import Batch, Loader, Position


class Stream:
    """Endless batches, one epoch after another, an optimiser step at a time.

    Args:
        loaders: by the objective that they are for.
        accumulation: batches a step, of each loader.
        consumed: where to go on, as `position` was; None: at the beginning.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], accumulation: int, consumed: Mapping[str, Position] | None = None
    ) -> None:
        beginning = {name: {"epoch": 0, "samples": 0} for name in loaders}
        self.position = {name: dict((consumed or beginning)[name]) for name in loaders}
        """What has been consumed: what was only made ahead does not count."""
        self.on_batch: Callable[[], object] = lambda: None
        """Called when a batch has been taken from a loader."""
        self._loaders, self._accumulation = loaders, accumulation
        self._first: dict[str, Batch] = {}
        self._batches = {name: _endless(loader, self.position[name]) for name, loader in loaders.items()}

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer spent waiting for data so far."""
        return sum(loader.wait_seconds for loader in self._loaders.values())

    def _take(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        self.on_batch()
        return batch

    def objects(self) -> dict[str, int]:
        """How many objects this process's batches of the next step hold together, by objective."""
        for name, batches in self._batches.items():
            if name not in self._first:
                self._first[name] = self._take(batches)
        return {name: batch["step_objects"] for name, batch in self._first.items()}

    def step(self) -> Iterator[tuple[str, Batch]]:
        """Yield (objective, batch) for one optimiser step. A batch counts as consumed when the next is asked for."""
        for name, batches in self._batches.items():
            for _ in range(self._accumulation):
                batch = self._first.pop(name, None) or self._take(batches)
                yield name, batch
                self.position[name] = batch["position"]


def _endless(loader: Loader, start: Position) -> Iterator[Batch]:
    """Each epoch has as many batches on every process, so that none waits for another at its end."""
    epoch, consumed = start["epoch"], start["samples"]
    while True:
        yield from loader.epoch(epoch, consumed)
        epoch, consumed = epoch + 1, 0
