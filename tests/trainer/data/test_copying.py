"""Copies of batches to a device, with a stand-in for a GPU's stream: it copies as late as it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.batches import make_loader, tensors_of
from trainer.data import batch as batches
from trainer.data.batch import Batch
from trainer.data.copying import Copies
from trainer.data.decoding import Buffers

FIELDS = ("pixel_values1", "prompt_masks1", "masks2")


@dataclass
class LateEvent:
    stream: LateStream
    number: int

    def synchronize(self) -> None:
        self.stream.waited += 1
        self.stream.run(self.number)


class LateStream(Copies[Batch]):
    """Copies when it is waited for, and not before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued: list[Callable[[], object]] = []
        self.done = 0
        self.waited = 0
        self.used: list[int] = []
        self._patch = monkeypatch

    def begin(self, batch: Batch) -> tuple[Batch, LateEvent]:
        def later(tensor: Tensor, device: torch.device) -> Tensor:
            target = torch.full_like(tensor, 77)
            self.queued.append(lambda: target.copy_(tensor))
            return target

        with self._patch.context() as patch:
            patch.setattr(batches, "to_device", later)
            return batch.on(torch.device("cpu")), LateEvent(self, len(self.queued))

    def use(self, batch: Batch, copied: LateEvent) -> None:
        self.used.append(copied.number)

    def run(self, number: int | None = None) -> None:
        for copy in self.queued[self.done : number]:
            copy()
        self.done = max(self.done, len(self.queued) if number is None else number)


def consumed(folder: Path, copies: Copies[Batch] | None, epochs: int = 2) -> list[tuple[Batch, dict[str, Tensor]]]:
    """Every batch, with its tensors as they are at its turn."""
    loader = make_loader(
        [folder], fields=FIELDS, batch_size=1, accumulation=2, seed=0, threads=2, prefetch=1, copies=copies
    )
    return [
        (batch, {name: tensor if copies else tensor.clone() for name, tensor in tensors_of(batch).items()})
        for epoch in range(epochs)
        for batch in loader.epoch(epoch)
    ]


def test_memory_is_written_again_only_when_it_was_copied(raw_set: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "empty_like", lambda empty, pin_memory=False: empty)  # page-locked memory needs a GPU
    expected = consumed(raw_set, None)
    stream = LateStream(monkeypatch)
    found = consumed(raw_set, stream)
    assert stream.done < len(stream.queued)  # the last copies are still queued
    stream.run()
    assert len(found) == len(expected) > 8
    for (batch, tensors), (like, values) in zip(found, expected, strict=True):
        assert batch.keys == like.keys and batch.position == like.position and batch.step_counts == like.step_counts
        assert all(torch.equal(tensors[name], values[name]) for name in values), batch.keys
    buffers = 3
    assert stream.waited == len(found) - buffers and stream.used == sorted(stream.used)
    assert len({*stream.used}) == len(found)  # each was used once, after its own copies


def test_without_the_wait_the_stand_in_copies_what_was_written_over(raw_set: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "empty_like", lambda empty, pin_memory=False: empty)
    monkeypatch.setattr(Buffers, "wait_for_copies", lambda self: None)
    expected = consumed(raw_set, None, 1)
    stream = LateStream(monkeypatch)
    found = consumed(raw_set, stream, 1)
    stream.run()
    same = [torch.equal(a[1]["pixel_values1"], b[1]["pixel_values1"]) for a, b in zip(found, expected, strict=True)]
    assert not all(same)
