"""Start as many processes as `accelerate launch --num_processes N` asks for, on machines without a GPU too.

There, Accelerate's launcher silently starts a single process, whatever N is. What tells N is MASTER_PORT, which it sets
for N > 1 only, and its own command line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

import psutil
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shards.errors import UserError
from trainer.checkpoints.preemption import SIGNALS, watch_parent
from trainer.config import load_config

_STARTED = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_missing(arguments: list[str]) -> None:
    """Where Accelerate started this process in place of several, start those, wait for them, and exit; else return.

    Raises:
        UserError: an invalid configuration, reported here once instead of by each process.
    """
    load_config(arguments)
    if count := missing_processes():
        start(count)
        sys.exit()


def missing_processes() -> int:
    """Return how many processes should run in place of this one; 0 where all that were asked for run."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "MASTER_PORT" not in os.environ:
        return 0  # not started by Accelerate, or for one process
    if any(name in os.environ for name in _STARTED):
        return 0
    asked = asked_processes(psutil.Process(os.getppid()).cmdline())
    if asked is None:
        raise UserError("cannot tell how many processes to start", do="pass --num_processes to accelerate launch")
    return asked


def asked_processes(command: Sequence[str]) -> int | None:
    """Return N of the command line `... accelerate launch --num_processes N ...`; None where it has none.

    Raises:
        UserError: it asks for several machines.
    """
    if "launch" not in command:
        return None
    arguments = command[command.index("launch") + 1 :]
    asked = launch_command_parser().parse_known_args(list(arguments))[0]
    if asked.num_machines and asked.num_machines > 1:
        do = "start torch.distributed.run on each, as docs/CLUSTERS.md says"
        raise UserError("several machines without GPUs", met=f"--num_machines {asked.num_machines}", do=do)
    number: int | None = asked.num_processes
    return number


def start(count: int) -> None:
    """Run this script with these arguments in `count` processes joined through gloo, and wait for them.

    One that fails ends them all, and this one with exit status 1: it has reported itself what was wrong. A signal is
    passed on to them, and so is the death of Accelerate's launcher, which passes nothing on.
    """
    if torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        counts = f"{count} processes, {torch.accelerator.device_count()} device(s)"
        raise UserError("more processes than devices", met=counts, do="lower --num_processes, or pass --cpu")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM), threading.Event())
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        sys.exit(statuses.pop() if statuses in ({128 + number} for number in SIGNALS) else 1)
    except SignalException as caught:
        sys.exit(128 + caught.sigval)
