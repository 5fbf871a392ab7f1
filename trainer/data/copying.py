"""Copy batches to a device ahead of the step, beside its work, from page-locked memory that is written again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import torch

from trainer.data.batch import Batch

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Event(Protocol):
    """A point in a device's queue of copies."""

    def synchronize(self) -> None:
        """Let the host wait until the device has come to this point."""


class Copies(ABC, Generic[AnyBatch]):
    """Copies of batches to a device, which the host does not wait for.

    What is copied from must not be written again before its event: a copy that was only queued still reads it.
    """

    @abstractmethod
    def begin(self, batch: AnyBatch) -> tuple[AnyBatch, Event]:
        """Queue the copies of a batch; return the batch on the device, and the event after its last copy."""

    @abstractmethod
    def use(self, batch: AnyBatch, copied: Event) -> None:
        """Let the work that is queued from now on begin after the copies of `batch`, which it reads."""


class SideStream(Copies[Batch]):
    """Copies on a stream of their own on a GPU, so that the next batch is copied while a step runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> tuple[Batch, Event]:
        with torch.cuda.stream(self._stream):
            copied = batch.on(self._device)
            event = torch.cuda.Event()
            event.record(self._stream)
        return copied, event

    def use(self, batch: Batch, copied: Event) -> None:
        current = torch.cuda.current_stream(self._device)
        assert isinstance(copied, torch.cuda.Event)
        current.wait_event(copied)
        for tensor in batch.tensors():  # which the side stream's memory would else be given to another batch too early
            tensor.record_stream(current)


def copies_to(device: torch.device) -> Copies[Batch] | None:
    """Return how batches are copied ahead to a device; None where there is no such way, as on the CPU."""
    return SideStream(device) if device.type == "cuda" else None
