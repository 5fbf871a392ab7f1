"""SIGTERM and SIGINT ask a run to save and leave; a second one is not argued with."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from trainer.launcher import was_launched

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 2.0  # seconds in which a signal counts as the first one again: launchers pass on what the terminal sent to all


class Preemption:
    """Listens while it is entered. `signal` is what arrived, 0 before; the loop looks at it once a step.

    A launcher that dies without a word counts as SIGTERM: its processes would train on with nobody to end them.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._left = threading.Event()

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        if was_launched():
            watch_parent(lambda: self._ask(signal.SIGTERM), self._left)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self.signal:
            return  # the launcher ends those that leave later than others: they leave with the same status
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int) -> None:
        if not self.signal:
            self.signal, self._since = int(number), time.monotonic()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and time.monotonic() - self._since > _ECHO:
            os._exit(128 + self.signal)
        self._ask(number)


def watch_parent(gone: Any, left: threading.Event) -> None:
    """Call `gone` once when the parent of this process has ended, unless `left` is set before."""
    parent = os.getppid()

    def watch() -> None:
        while not left.wait(0.5):
            if os.getppid() != parent:
                return gone()

    threading.Thread(target=watch, name="parent", daemon=True).start()
