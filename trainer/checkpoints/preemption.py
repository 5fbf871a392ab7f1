"""SIGTERM and SIGINT make a run save and exit; a second one makes it exit at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from trainer.launcher import was_launched

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 2.0  # seconds in which a signal repeats the first one: launchers pass on what the terminal sent to all


class Preemption:
    """Receives signals inside its `with` block. `signal` is the first that arrived, 0 before; checked once per step.

    A launcher that is killed counts as SIGTERM: its processes would train on with nobody to end them.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._left = threading.Event()

    def __enter__(self) -> Preemption:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        if was_launched():
            watch_parent(lambda: self._request(signal.SIGTERM), self._left)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self.signal:
            return  # the launcher signals processes that exit later than others: they exit with the same status
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int) -> None:
        if not self.signal:
            self.signal = int(number)
            self._since = time.monotonic()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and time.monotonic() - self._since > _ECHO:
            os._exit(128 + self.signal)
        self._request(number)


def watch_parent(gone: Any, left: threading.Event) -> None:
    """Call `gone` once when the parent of this process has ended, unless `left` is set before."""
    parent = os.getppid()

    def watch() -> None:
        while not left.wait(0.5):
            if os.getppid() != parent:
                return gone()

    threading.Thread(target=watch, name="parent", daemon=True).start()
