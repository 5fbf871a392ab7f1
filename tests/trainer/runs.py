"""Whole runs for tests: small ones, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import files_of

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("mixed_precision=no", "max_caption_tokens=3", "num_points=256", "gumbel_top_k=16", "warmup_steps=0"),
    *("lora.r=4", "lora.alpha=8", "lora.dropout=0", "lr=1e-3", "data.threads=1"),
]

STATE_OF_THE_RUN = ("trained.safetensors", "teacher.safetensors", "optimizer.safetensors", "rng.json")


def begin_run(
    arguments: list[str], said: Path, processes: int | None, configuration: str | None = None
) -> subprocess.Popen[str]:
    """`accelerate launch --num_processes N trainer/train.py ...`, or without the launcher where N is None.

    `configuration`: a file for the launcher. What it says gets into the file `said`. It leads a process group.
    """
    started = {"LOCAL_RANK", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {k: v for k, v in os.environ.items() if k not in started} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable]
    if processes:
        command += ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", str(processes)]
        command += ["--config_file", configuration] if configuration else []
    with said.open("w") as file:
        return subprocess.Popen(
            [*command, "trainer/train.py", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def launch(arguments: list[str], said: Path, processes: int, configuration: str | None = None) -> str:
    """Run to the end, which must be a good one; what it said."""
    status = begin_run(arguments, said, processes, configuration).wait(timeout=300)
    text = said.read_text()
    assert status == 0, text[-3000:]
    return text


def records(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds, but a line that is being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each record of a step."""
    return [(record["step"], record["loss"]) for record in records(folder) if "loss" in record]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Until `condition` holds. Fails where `process` ends before."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def assert_same(run: Path, undisturbed: Path) -> None:
    """Losses of every step, weights, teacher, optimiser and random state are bit-equal."""
    assert losses(run) == losses(undisturbed)
    one, two = (files_of((folder / "checkpoint").resolve()) for folder in (run, undisturbed))
    assert [name for name in STATE_OF_THE_RUN if one[name] != two[name]] == []
    states = [json.loads(files["state.json"]) for files in (one, two)]
    assert states[0]["position"] == states[1]["position"] and states[0]["scheduler"] == states[1]["scheduler"]
