"""Checkpoints are written by a thread while the run goes on, one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs one save at a time in a thread. An error of it is raised by the next call of `check`, `start` or `wait`.

    A process that is killed takes the thread along; one that exits otherwise should `close` first.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, save: Callable[[], object]) -> None:
        """Wait until the save before has ended, and begin this one. It must not use what the caller changes."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(save,), name="checkpoint", daemon=False)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a save that has failed; do not wait for one that goes on."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until no save goes on, and raise its error."""
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            raise error

    def close(self) -> None:
        """Wait until no save goes on, and log its error: something else ends the run already."""
        try:
            self.wait()
        except Exception as error:
            log.error("%s", error)

    def _run(self, save: Callable[[], object]) -> None:
        try:
            save()
        except BaseException as error:
            self._error = error
