"""Times of parts of a step, by the clock and by a GPU's events."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from trainer.stopwatch import Stopwatch


def test_times_add_up_until_they_are_taken():
    watch = Stopwatch()
    before = time.perf_counter()
    for _ in range(2):
        with watch.running(torch.device("cpu")):
            time.sleep(0.01)
    assert 0.02 <= watch.take() <= time.perf_counter() - before
    assert watch.take() == 0


def test_a_gpu_is_timed_by_its_events_and_waited_for_only_when_the_time_is_taken(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []

    class Event:
        """Stands for CUDA's: the n-th takes place n squared milliseconds after the first."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.done: list[str] = []
            self.time = len(made) ** 2
            made.append(self)

        def record(self) -> None:
            self.done.append("recorded")

        def synchronize(self) -> None:
            self.done.append("waited for")

        def elapsed_time(self, end: Any) -> float:
            return float(end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(torch.device("cuda")):
            pass
    assert [event.done for event in made] == [["recorded"]] * 4
    assert watch.take() == pytest.approx((1 - 0 + 9 - 4) / 1e3)
    assert [event.done[1:] for event in made] == [[], ["waited for"]] * 2
    assert watch.take() == 0
