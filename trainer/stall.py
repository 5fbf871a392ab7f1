"""Log which process of a run the others wait for: a collective itself only waits.

    OUTPUT_DIR/.processes/RANK.json    what each process is doing, written anew every few seconds, also while it waits

A process that is stopped, or whose machine is gone, stops writing. A slow one goes on writing, and is behind.
Numbers are compared, not clocks, which differ between machines. One process logs what is found.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 10.0  # seconds between two beats
_SILENT = 3.0  # seconds, at least: loading and compiling can block all other threads for as long


@dataclass(frozen=True)
class Beat:
    """What a process reports about itself."""

    beat: int
    """Number of this report."""
    reached: int
    """Number of calls of `StallWatch.at`; all processes call it in the same places."""
    doing: str
    host: str
    pid: int


class StallWatch:
    """Logs which process waits for which, from `start` to `close`. Does nothing in a run of one process.

    Args:
        folder: `output_dir`, which all processes see.
        rank: of this process.
        count: number of processes.
        notice: seconds that this process waits before it is logged.
        timeout: seconds after which the wait ends the run, for the message.
    """

    def __init__(self, folder: Path, rank: int, count: int, notice: float, timeout: float) -> None:
        self._folder = folder / ".processes"
        self._rank = rank
        self._count = count
        self._notice = notice
        self._timeout = timeout
        self._reached = 0
        self._doing = "start"
        self._since = time.monotonic()
        self._host = socket.gethostname()
        self._beats = 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall", daemon=True)

    def start(self) -> None:
        """Begin to write and to watch; `folder` exists."""
        if self._count > 1:
            self._thread.start()

    def close(self) -> None:
        """Stop, and remove what was written."""
        self._left.set()
        if not self._thread.is_alive():
            return
        self._thread.join(_LONGEST_PAUSE)  # it may hang where the file system does
        with suppress(OSError):
            self._path(self._rank).unlink(missing_ok=True)
            self._folder.rmdir()  # by the last one

    def at(self, doing: str) -> None:
        """Note that this process begins something that all processes do."""
        self._doing = doing
        self._since = time.monotonic()
        self._reached += 1

    def advance(self) -> None:
        """Note that this process has done a part of it."""
        self.at(self._doing)

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    def _run(self) -> None:
        pause = min(self._notice / 6, _LONGEST_PAUSE)
        before: dict[int, tuple[Beat, float]] = {}
        quiet = self._notice
        left = False
        while not left:
            left = self._left.wait(pause)  # then one last look: that the process went on is logged in any case
            if not left:
                with suppress(OSError):  # a full disk does not end a run
                    self._write()
            waited = time.monotonic() - self._since
            if waited < self._notice / 2:
                if quiet > self._notice:
                    log.warning("process %d goes on", self._rank)
                before = {}
                quiet = self._notice
                continue
            if left:
                return
            for rank, beat in self._others().items():
                if rank not in before or before[rank][0].beat != beat.beat:
                    before[rank] = beat, time.monotonic()
            if waited >= quiet and (found := self._explain(before)):
                log.warning("%s; the run ends after %g s (collective_timeout)", found, self._timeout)
                quiet = 2 * waited

    def _write(self) -> None:
        self._beats += 1
        beat = Beat(self._beats, self._reached, self._doing, self._host, os.getpid())
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{self._rank}.tmp"
        temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        os.replace(temporary, self._path(self._rank))

    def _others(self) -> dict[int, Beat]:
        found = {}
        for rank in range(self._count):
            if rank != self._rank:
                with suppress(OSError, ValueError, TypeError):
                    found[rank] = Beat(**json.loads(self._path(rank).read_bytes()))
        return found

    def _explain(self, before: dict[int, tuple[Beat, float]]) -> str:
        """Return who is waited for, and why; empty where all are equally far, or another process logs it."""
        now = time.monotonic()
        silent = max(self._notice / 2, _SILENT)
        held_up = {}
        for rank in range(self._count):
            if rank == self._rank:
                continue
            if rank not in before:
                held_up[rank] = f"process {rank}, which has not come so far or has ended"
                continue
            beat, since = before[rank]
            who = f"process {rank} ({beat.host}, pid {beat.pid}), at {beat.doing}"
            if now - since > silent:
                held_up[rank] = f"{who}, which gives no sign of life: it is stopped, or its machine does not answer"
            elif beat.reached < self._reached:
                held_up[rank] = f"{who}, which is slower"
        waiting = [rank for rank in range(self._count) if rank not in held_up]
        if not held_up or waiting[0] != self._rank:
            return ""
        names = ", ".join(map(str, waiting))
        verb = "waits" if len(waiting) == 1 else "wait"
        noun = "process" if len(waiting) == 1 else "processes"
        waited = time.monotonic() - self._since
        return f"{noun} {names} {verb} at {self._doing} for {waited:.0f} s now, for {'; '.join(held_up.values())}"
