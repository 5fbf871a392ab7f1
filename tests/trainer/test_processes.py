"""The number of processes that Accelerate was asked for, where it starts one only."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from shards.errors import UserError
from tests.joined import JOINED, Joined
from trainer import processes
from trainer.processes import asked_processes, missing_processes


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["python", "/bin/accelerate", "launch", "--num_processes", "2", "trainer/train.py", "steps=3"], 2),
        (["python", "/bin/accelerate", "launch", "--cpu", "--num-processes=3", "trainer/train.py"], 3),
        (["python", "/bin/accelerate", "launch", "trainer/train.py", "--num_processes", "9"], None),
        (["python", "-m", "accelerate.commands.launch", "trainer/train.py"], None),
        (["bash"], None),
    ],
)
def test_the_number_is_the_launchers_argument(command: list[str], asked: int | None):
    assert asked_processes(command) == asked


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that Accelerate 1.15 leaves to the one process it starts for --num_processes 2 on a CPU."""
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    parent = type("Parent", (), {"cmdline": lambda self: ["accelerate", "launch", "--num_processes", "2", "t.py"]})
    monkeypatch.setattr(processes.psutil, "Process", lambda pid: parent() if pid == os.getppid() else None)
    return monkeypatch


def test_a_single_process_knows_how_many_were_requested(launched: pytest.MonkeyPatch):
    assert missing_processes() == 2


@pytest.mark.parametrize("name", ["LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"])
def test_a_process_with_a_rank_starts_no_others(launched: pytest.MonkeyPatch, name: str):
    launched.setenv(name, "0")
    assert missing_processes() == 0


@pytest.mark.parametrize("name", ["MASTER_PORT", "ACCELERATE_MIXED_PRECISION"])
def test_a_single_requested_process_starts_no_others(launched: pytest.MonkeyPatch, name: str):
    launched.delenv(name)
    assert missing_processes() == 0


SCRIPT = """
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]
def told(number, frame):
    pathlib.Path("told" + rank).touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, told)
pathlib.Path("ready" + rank).touch()
while sys.argv[1:] == ["fail"] and rank == "1":
    if pathlib.Path("ready0").exists():
        sys.exit(3)
    time.sleep(0.02)
time.sleep(120)
"""


def start_script(folder: Path, *arguments: str) -> None:
    os.chdir(folder)
    sys.argv = ["script.py", *arguments]
    processes.start(2)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


@pytest.mark.slow
def test_a_signal_is_passed_on_to_all_and_is_the_exit_status(script: Path):
    run = Joined(1, start_script, script, log=script / "said")
    until = time.monotonic() + 60
    while len([*script.glob("ready*")]) < 2:
        assert time.monotonic() < until and run.poll() is None, (script / "said").read_text()
        time.sleep(0.02)
    run.processes[0].terminate()
    assert run.wait() == [128 + signal.SIGTERM]
    assert sorted(path.name for path in script.glob("told*")) == ["told0", "told1"]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(script: Path):
    run = Joined(1, start_script, script, "fail", log=script / "said")
    assert run.wait(60) == [1]
    assert [path.name for path in script.glob("told*")] == ["told0"]


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
