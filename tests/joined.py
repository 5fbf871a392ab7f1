"""Processes as a launcher starts them, joined through gloo; forked from one that has done the slow imports."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed import TCPStore

import cli
from evaluation.appended import AppendedFile

_FORKS = mp.get_context("forkserver")
_FORKS.set_forkserver_preload(["trainer.train", "evaluation.evaluate", "tests.joined"])
_OF_A_LAUNCHER = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_")
JOINED = {"LOCAL_RANK", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"}
"""Environment variables that describe a process group."""


class Joined:
    """`count` processes that call `run` with `arguments`; one process gets no variables of a launcher.

    Args:
        log: the file that gets their output.
        environment: what a launcher sets besides.
    """

    def __init__(
        self,
        count: int,
        run: Callable[..., object],
        *arguments: Any,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # The store lives here, as it does in a launcher: no port has to be guessed.
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        kept = {k: v for k, v in os.environ.items() if k not in JOINED and not k.startswith(_OF_A_LAUNCHER)}
        launcher = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(self._store.port)}
        launcher |= {
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "ACCELERATE_USE_CPU": "true",
        }
        log.touch()
        self.processes: list[ForkServerProcess] = []
        for rank in range(count):
            ranks = {**launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            threads = 1 if count > 1 else torch.get_num_threads()  # a launcher gives each of several one
            how = (run, arguments, str(log), kept | dict(environment or {}) | ranks, threads)
            self.processes.append(_FORKS.Process(target=_run, args=how))
        for process in self.processes:
            process.start()

    def poll(self) -> int | None:
        """Return the exit status of a failed process, 0 once all have succeeded, None before."""
        codes = [process.exitcode for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    def wait(self, seconds: float = 400) -> list[int | None]:
        """Return the exit statuses once all have ended. A process that outlives `seconds` is killed: None."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes


def command_line(arguments: Sequence[object]) -> None:
    """`cli.py ...` in this process."""
    with patch.object(sys, "argv", ["cli.py", *map(str, arguments)]):
        cli.main()


def dies_after_a_line(arguments: Sequence[object]) -> None:
    """`cli.py ...` in this process. The last one is killed once it has appended lines; others append after it."""
    append = AppendedFile.append
    dies = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)

    def in_turn(file: AppendedFile, lines: Sequence[Any]) -> None:
        while lines and not dies and not file.path.stat().st_size:
            time.sleep(0.01)
        append(file, lines)
        if lines and dies:
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(AppendedFile, "append", in_turn):
        command_line(arguments)


def _run(
    run: Callable[..., object], arguments: tuple[Any, ...], log: str, environment: dict[str, str], threads: int
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    run(*arguments)
