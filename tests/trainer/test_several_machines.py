"""Several machines, on one: each has a launcher of its own, which finds the others through a rendezvous."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shards.errors import UserError
from tests.joined import JOINED
from tests.trainer.runs import REPOSITORY, SMALL, assert_same, finish, losses, wait_for
from trainer.processes import missing_processes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def stub(folder: Path, name: str, *lines: str) -> None:
    """Write a program of Slurm's that does what is needed here."""
    path = folder / name
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def begin_machine(arguments: list[str], programs: Path, port: int, log: Path) -> subprocess.Popen[str]:
    """Run slurm.sbatch as one machine of two, each with one process. Its output goes to the file `log`."""
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "localhost,other", "SLURM_JOB_ID": "17"}
    slurm |= {"SLURM_SUBMIT_DIR": str(REPOSITORY), "PORT": str(port), "PET_LOCAL_ADDR": "localhost"}
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in JOINED}
    with log.open("w") as file:
        return subprocess.Popen(
            ["bash", str(REPOSITORY / "trainer/launch/slurm.sbatch"), *arguments],
            env={**kept, **slurm, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )


def kill_machine(machine: subprocess.Popen[str]) -> None:
    """Kill -9 of all that runs there, as when its power fails."""
    processes = [*psutil.Process(machine.pid).children(recursive=True), psutil.Process(machine.pid)]
    for process in reversed(processes):  # the launcher first: it would end its processes gently
        process.kill()
    machine.wait()


@pytest.mark.slow
def test_a_machine_dies_and_comes_back(unequal_set: Path, tmp_path: Path):
    """The other one waits for it, and the run goes on by itself from the last checkpoint when the same command is given
    there again. It ends bit-equal to an undisturbed run of two processes."""
    stub(tmp_path, "srun", 'while [[ "$1" == --* ]]; do shift; done', 'exec "$@"')
    stub(tmp_path, "scontrol", 'tr , "\\n" <<< "$3"')
    arguments = [f"data.shards=[{unequal_set}]", "data.holdout=0", "steps=4", "accumulation=1", "batch_size=1", *SMALL]
    arguments += ["data.objects_per_sample=4", "lora.dropout=0.2", "checkpoint={every: 1, keep: 4}"]
    out = tmp_path / "run"
    port = free_port()
    first = begin_machine([*arguments, f"output_dir={out}"], tmp_path, port, tmp_path / "first")
    with socket.socket() as probe:
        wait_for(lambda: probe.connect_ex(("localhost", port)) == 0, first)  # it is where the others are to come
    second = begin_machine([*arguments, f"output_dir={out}"], tmp_path, port, tmp_path / "second")
    wait_for(lambda: (out / "checkpoints" / "latest").exists(), second)
    kill_machine(second)
    done = len(losses(out))
    second = begin_machine([*arguments, f"output_dir={out}"], tmp_path, port, tmp_path / "second again")
    text = tmp_path / "first"
    try:
        assert first.wait(400) == second.wait(60) == 0, text.read_text()[-3000:]
    finally:
        for machine in (first, second):
            if machine.poll() is None:
                kill_machine(machine)
    assert done < 4 and "another process of this run ended before its time" in text.read_text()
    both = text.read_text() + (tmp_path / "second again").read_text()
    assert both.count("going on after step") == 1  # one process of all speaks
    assert f"{text.read_text()}{(tmp_path / 'second').read_text()}".count("step 00001/00004") == 1
    finish([*arguments, f"output_dir={tmp_path / 'undisturbed'}"], tmp_path / "said", processes=2)
    assert_same(out, tmp_path / "undisturbed")


def test_accelerates_launcher_on_several_machines_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It starts one process, which would start those of all machines on this one."""
    for name in JOINED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    command = ["accelerate", "launch", "--num_machines", "2", "--machine_rank", "1", "--num_processes", "4", "train.py"]
    monkeypatch.setattr("psutil.Process.cmdline", lambda self: command)
    with pytest.raises(UserError, match=r"several machines without GPUs; met --num_machines 2; .*CLUSTERS\.md"):
        missing_processes()
