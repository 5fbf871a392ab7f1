"""Programs that are killed with SIGKILL at their n-th use of a folder: it comes on fast and on slow machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from inspect import getsource
from pathlib import Path


def die_at(use: int, folder: str, seconds: float) -> None:
    """Let this process, but not its forks, kill itself at its use of a path in `folder`, counted from 1."""
    leading, used = os.getpid(), 0

    def hook(event: str, values: tuple[object, ...]) -> None:
        nonlocal used
        if os.getpid() == leading and any(isinstance(v, (str, bytes)) and folder in os.fsdecode(v) for v in values):
            used += 1
            if used == use:
                time.sleep(seconds)
                os.kill(leading, signal.SIGKILL)

    sys.addaudithook(hook)


PROGRAM = f"""
from __future__ import annotations
import os, runpy, signal, sys, time

{getsource(die_at)}
die_at(int(sys.argv[2]), sys.argv[1], float(sys.argv[3]))
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_at(use: int, folder: Path, command: Sequence[str], seconds: float = 0.0) -> bool:
    """Run a Python program, and kill it, but not its workers, at its use of a path in `folder`, counted from 1.

    Args:
        use: opening, renaming and whatever else Python raises an audit event of.
        folder: only the leading process's own uses count.
        command: the interpreter, the program's file and its arguments.
        seconds: it is killed so much later, while its workers go on.

    Returns:
        Whether it was killed: False where it ended before.
    """
    interpreter, *program = command
    call = [interpreter, "-c", PROGRAM, str(folder), str(use), str(seconds), *program]
    with tempfile.TemporaryFile("w+") as errors:  # no pipe: its end would come with that of the last worker
        code = subprocess.run(call, stdout=subprocess.DEVNULL, stderr=errors).returncode
        errors.seek(0)
        assert code in (0, -signal.SIGKILL), errors.read()
    return code != 0


def fork_killed_at(use: int, folder: Path, call: Callable[[], object]) -> bool:
    """Call a function in a fork of this process, and kill that at its use of a path in `folder`, counted from 1.

    Returns:
        Whether it was killed: False where the function returned before.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            die_at(use, str(folder), 0.0)
            call()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
