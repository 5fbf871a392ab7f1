"""The command that started a run, as it was typed: with the launcher, its options and its configuration file."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Environment variables that a launcher sets for the processes that it starts."""


def was_launched() -> bool:
    """Whether the parent of this process is a launcher, and not a shell that may go away."""
    return any(name in os.environ for name in LAUNCHED)


def typed_command(arguments: Sequence[str], processes: int) -> str:
    """Return the shell line that started this run.

    A launcher's command line ends with the script's own: the line is that of the farthest ancestor of this process up
    to which all end with `arguments`. Where none is found (a launcher on another machine, or none), it is the
    `accelerate launch` that starts as many processes.

    Args:
        arguments: of `trainer/train.py`.
        processes: of the run.
    """
    lines = [line for line in _command_lines() if line]
    matching = 0
    while matching < len(lines) and _ends_with(lines[matching], arguments):
        matching += 1
    if matching > 1 or (matching == 1 and not was_launched()):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if matching == 1 else "1"
        srun = ["srun", f"--ntasks={tasks}"] if tasks != "1" else []  # it is no ancestor of what it starts
        return shlex.join([*srun, *_as_typed(lines[matching - 1])])
    return shlex.join(["accelerate", "launch", "--num_processes", str(processes), "trainer/train.py", *arguments])


def _command_lines() -> Iterator[list[str]]:
    """Yield the command line of this process, of its parent, and so on; they end where one cannot be read."""
    try:
        process: psutil.Process | None = psutil.Process()
        while process:
            yield process.cmdline()
            process = process.parent()
    except psutil.Error:
        return


def _ends_with(line: Sequence[str], arguments: Sequence[str]) -> bool:
    if not arguments:
        return line[-1] == sys.argv[0]
    return [*line[-len(arguments) :]] == [*arguments]


def _as_typed(line: Sequence[str]) -> list[str]:
    """Undo what the system made of a program's name, as `/bin/python /bin/accelerate` of `accelerate`."""
    if len(line) < 2 or not Path(line[0]).name.startswith("python") or not _is_program(line[1]):
        return [*line]
    name = Path(line[1]).name
    return [name if shutil.which(name) == line[1] else line[1], *line[2:]]


def _is_program(path: str) -> bool:
    """Whether the file names its interpreter in its first line, and may be run."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!" and os.access(path, os.X_OK)
    except OSError:
        return False
