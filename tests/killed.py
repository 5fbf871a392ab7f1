"""Programs that are killed with SIGKILL at their n-th use of a folder: it comes on fast and on slow machines."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAM = """
import os, runpy, signal, sys, time

folder, last, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sys.argv = sys.argv[4:]
leading, used = os.getpid(), 0

def use(event, values):
    global used
    if os.getpid() == leading and any(isinstance(v, (str, bytes)) and folder in os.fsdecode(v) for v in values):
        used += 1
        if used == last:
            time.sleep(seconds)
            os.kill(leading, signal.SIGKILL)

sys.addaudithook(use)
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
