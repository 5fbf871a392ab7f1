"""Whole runs for tests: small ones, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.conftest import files_of
from tests.joined import JOINED, Joined
from trainer.command import run_command
from trainer.data.batch import Batch
from trainer.data.stream import Stream
from trainer.train import main

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("mixed_precision=no", "max_caption_tokens=3", "num_points=256", "gumbel_top_k=16", "warmup_steps=0"),
    *("lora.r=4", "lora.alpha=8", "lora.dropout=0", "lr=1e-3", "data.threads=1"),
]

TALKS = ("refcoco", "ref-youtube-vos", "gcg-grandf", "osprey-description", "llava", "videoqa")
"""Of `mix_sets`: pictures, videos, captions, regions, and texts alone."""


def talk_arguments(mix_sets: Path) -> list[str]:
    """Arguments of a run of 4 steps of 2 samples, more than an epoch, on conversations of all kinds."""
    shards = ", ".join(str(mix_sets / name) for name in TALKS)
    return [
        *("objective=converse", f"data.shards=[{shards}]", "data.sources={llava: 0.5, gcg-grandf: 2}", "steps=4"),
        *("data.frames=2", "data.objects_per_sample=2", "data.group_by_length=true", "data.holdout=0", *SMALL),
        *("conversation={with_replacement: true, negatives: 0.5}", "loss_means=sa2va", "lora.dropout=0.2"),
    ]


STATE_OF_THE_RUN = ("trained.safetensors", "teacher.safetensors", "optimizer.safetensors", "rng.json")


def begin_run(arguments: list[str], log: Path, processes: int, modules: Path | None = None) -> subprocess.Popen[str]:
    """`accelerate launch --num_processes N trainer/train.py ...`, as a user types it. It leads a process group.

    Args:
        log: the file that gets its output.
        modules: a folder of more modules.
    """
    path = f"{modules}:{REPOSITORY}" if modules else str(REPOSITORY)
    environment = {k: v for k, v in os.environ.items() if k not in JOINED} | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*command, "--num_processes", str(processes), "trainer/train.py", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def fork_run(arguments: list[str], log: Path, processes: int, **how: Any) -> Joined:
    """What `begin_run` starts in the end, in a tenth of the time."""
    return Joined(processes, train, arguments, log=log, **how)


def train(arguments: list[str]) -> None:
    """`trainer/train.py` in this process."""
    with patch.object(sys, "argv", ["trainer/train.py", *arguments]):
        run_command(main, None)


def train_signalled(arguments: list[str], number: int, step: int, file: Path | None = None) -> None:
    """Train; the second process sends itself the signal `number` as it begins its `step`-th step, from 1.

    Args:
        file: the signal comes when this exists.
    """
    original = Stream.step
    begun = count(1)

    def signalling(stream: Stream) -> Iterator[tuple[str, Batch]]:
        if os.environ["RANK"] == "1" and next(begun) == step:
            while file and not file.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)
        return original(stream)

    with patch.object(Stream, "step", signalling):
        train(arguments)


def finish(arguments: list[str], log: Path, processes: int, **how: Any) -> str:
    """Run to the end, require exit status 0, and return the output."""
    codes = fork_run(arguments, log, processes, **how).wait()
    text = log.read_text()
    assert codes == [0] * processes, text[-3000:]
    return text


def environment_of(file: str, *flags: str) -> dict[str, str]:
    """What `accelerate launch --config_file trainer/launch/FILE ...` sets, of its own, for the processes it starts."""
    path = str(REPOSITORY / "trainer" / "launch" / file)
    words = ["--config_file", path, "--num_processes", "2", *flags, "trainer/train.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        everything = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        everything = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in everything.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def records(folder: Path) -> list[dict[str, Any]]:
    """Records of `metrics.jsonl`, without a line that is being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each record of a step."""
    return [(record["step"], record["loss"]) for record in records(folder) if "loss" in record]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | Joined, seconds: float = 200) -> None:
    """Wait until `condition` holds. Fail if `process` ends before."""
    until = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None  # asked first: what it did last may fulfil the condition
        if condition():
            return
        assert not ended, "it ended before"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def assert_same(run: Path, undisturbed: Path) -> None:
    """Losses of every step, weights, teacher, optimiser and random state are bit-equal."""
    assert losses(run) == losses(undisturbed)
    one, two = (files_of((folder / "checkpoint").resolve()) for folder in (run, undisturbed))
    assert [name for name in STATE_OF_THE_RUN if one[name] != two[name]] == []
    states = [json.loads(files["state.json"]) for files in (one, two)]
    assert states[0]["position"] == states[1]["position"] and states[0]["scheduler"] == states[1]["scheduler"]
