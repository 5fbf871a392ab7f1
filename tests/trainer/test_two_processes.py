"""Two processes train as one does, also when killed, preempted or resumed as one."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.request import make_request
from pipeline.run import run as run_pipeline
from shards.errors import UserError
from tests import mixed
from tests.batches import make_loader
from tests.conftest import files_of
from tests.joined import JOINED, Joined
from tests.servers import free_port
from tests.trainer.runs import (
    REPOSITORY,
    SMALL,
    STATE_OF_THE_RUN,
    assert_same,
    begin_run,
    environment_of,
    finish,
    losses,
    records,
    talk_arguments,
    train,
    train_signalled,
    wait_for,
)
from trainer.config import load_config
from trainer.model.sa2va import build
from trainer.model.trainable import set_trainable
from trainer.objectives import passes
from trainer.train import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(unequal_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of 4 steps, more than an epoch, in 2 processes. Not to be changed.

    Its batches hold 1 to 4 objects, so that means over objects differ from means of means. With a larger eps than
    usual: Adam would otherwise blow up rounding where a gradient is all but 0.
    """
    out = tmp_path_factory.mktemp("two")
    arguments = [f"data.shards=[{unequal_set}]", "data.holdout=0", "steps=4", "accumulation=2", *SMALL, "eps=1e-3"]
    arguments += ["data.objects_per_sample=4", "checkpoint={every: 1, keep: 4}"]
    (out / "given.json").write_text(json.dumps(arguments))
    finish([*arguments, "batch_size=1", f"output_dir={out}"], out / "said", processes=2)
    return out


def given_to_two(two_processes: Path) -> list[str]:
    """Arguments of that run, without `batch_size` (1) and `output_dir`."""
    return list(json.loads((two_processes / "given.json").read_text()))


def test_two_processes_end_with_the_weights_of_one(two_processes: Path, tmp_path: Path):
    """The same global batches, of which one process takes each at once: gradients and losses are means over all of its
    objects, and both processes draw what one would draw for each sample."""
    text = (two_processes / "said").read_text()
    assert "2 process(es) on cpu" in text
    assert text.count("step 00001/00004") == 1  # one process speaks
    main([*given_to_two(two_processes), "batch_size=4", "accumulation=1", f"output_dir={tmp_path}"])
    first, second = (load_file(folder / "checkpoint/trained.safetensors") for folder in (tmp_path, two_processes))
    assert first.keys() == second.keys()
    torch.manual_seed(0)
    model = build("tiny")
    set_trainable(model, load_config([]).trainable, r=4, alpha=8, dropout=0.0)
    moved = {n: (first[n] - p).abs().max().item() for n, p in model.named_parameters() if n.startswith("mlp1")}
    gaps = {name: (first[name] - second[name]).abs().max().item() for name in first}
    assert max(gaps.values()) < 1e-5, max(gaps, key=gaps.__getitem__)
    assert max(moved.values()) > 5e-4, "nothing was trained"
    for one, two in zip(losses(tmp_path), losses(two_processes), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


KILLED = """
import os, signal

if os.environ.get("RANK") == "1":
    from itertools import count
    from trainer.data.stream import Stream

    original, begun = Stream.step, count(1)

    def step(stream):
        if next(begun) == {}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(stream)

    Stream.step = step
"""
"""A module that Python imports by itself as it starts. Seconds after a start, a kill -9 from outside comes too late."""


def test_two_processes_of_which_one_is_killed(two_processes: Path, tmp_path: Path):
    """As a user starts them. kill -9 of the second process, in step 3 or 4, ends the run for both, at once; the same
    command goes on, and ends where processes did that no launcher started."""
    out = tmp_path / "run"
    command = [*given_to_two(two_processes), "batch_size=1", f"output_dir={out}"]
    killed_in = random.choice((3, 4))  # the checkpoint of step 1 stands before step 2 ends
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(KILLED.format(killed_in))
    process = begin_run(command, tmp_path / "said", 2, modules)
    assert process.wait(timeout=400) == 1, (tmp_path / "said").read_text()[-3000:]
    alive = psutil.process_iter(["environ", "cmdline"])
    assert [one.info["cmdline"] for one in alive if str(modules) in str(one.info["environ"])] == []
    assert len(losses(out)) == killed_in - 1
    assert "2 process(es) on cpu" in (tmp_path / "said").read_text()
    assert "going on after step" in finish(command, tmp_path / "said again", processes=2)
    assert_same(out, two_processes)


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


def test_a_machine_dies_and_comes_back(two_processes: Path, tmp_path: Path):
    """Each of two machines, which are this one, has a launcher of its own. The other one waits for the dead one, and
    the run goes on by itself from the last checkpoint when the same command is given there again."""
    stub(tmp_path, "srun", 'while [[ "$1" == --* ]]; do shift; done', 'exec "$@"')
    stub(tmp_path, "scontrol", 'tr , "\\n" <<< "$3"')
    out = tmp_path / "run"
    arguments = [*given_to_two(two_processes), "batch_size=1", f"output_dir={out}"]
    port = free_port()
    first = begin_machine(arguments, tmp_path, port, tmp_path / "first")
    with socket.socket() as probe:
        wait_for(lambda: probe.connect_ex(("localhost", port)) == 0, first)  # it is where the others are to come
    second = begin_machine(arguments, tmp_path, port, tmp_path / "second")
    wait_for(lambda: (out / "checkpoints" / "latest").exists(), second)
    kill_machine(second)
    done = len(losses(out))
    second = begin_machine(arguments, tmp_path, port, tmp_path / "second again")
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
    assert_same(out, two_processes)


def spoilt(arguments: list[str], from_step: int) -> None:
    """Train; in the second process the mask losses are NaN from a step of two batches on. Each update is printed."""
    original = passes.point_losses
    update = torch.optim.AdamW.step
    asked = count()

    def point_losses(*how: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bad = os.environ["RANK"] == "1" and next(asked) >= 2 * (from_step - 1)
        return tuple(loss * torch.nan if bad else loss for loss in original(*how))

    def printing(optimizer: torch.optim.AdamW, *how: object) -> object:
        print("an update", flush=True)
        return update(optimizer, *how)

    passes.point_losses = point_losses
    torch.optim.AdamW.step = printing
    train(arguments)


def test_two_processes_of_which_one_has_a_loss_that_is_not_finite(
    two_processes: Path, unequal_set: Path, tmp_path: Path
):
    """Both stop before the update, none waits for the other, and the checkpoint before stands."""
    out = tmp_path / "run"
    run = Joined(
        2, spoilt, [*given_to_two(two_processes), "batch_size=1", f"output_dir={out}"], 2, log=tmp_path / "said"
    )
    assert run.wait() == [1, 1]
    text = (tmp_path / "said").read_text()
    assert text.count("an update") == 2 and "Traceback" not in text  # of step 1, in both
    keys = {}
    for rank in (0, 1):
        batches = make_loader(
            [str(unequal_set)], fields=(), batch_size=1, seed=0, rank=rank, world_size=2, accumulation=2
        )
        keys[rank] = ", ".join(key for batch in islice(batches.epoch(0), 2, 4) for key in batch.keys)
    errors = sorted(line for line in text.splitlines() if line.startswith("error: "))
    start = "error: step 2, objective dual, samples {}: loss or gradient is not finite; met {}"
    assert len(errors) == 2 and keys[0] != keys[1]
    assert any(e.startswith(start.format(keys[0], "finite here, not on another process; ")) for e in errors)
    assert any(e.startswith(start.format(keys[1], "loss nan, bce nan, dice nan; ")) for e in errors)
    assert losses(out) == losses(two_processes)[:1]
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-0000001"]
    written, expected = (files_of(folder / "checkpoints" / "step-0000001") for folder in (out, two_processes))
    assert [name for name in STATE_OF_THE_RUN if written[name] != expected[name]] == []


def test_two_preempted_processes_resume_as_one(two_processes: Path, tmp_path: Path):
    """Both stop after the same step, though one alone gets the signal. Then the same samples in each step, whoever
    takes them; sums are rounded in another order."""
    out = tmp_path / "run"
    command = [*given_to_two(two_processes), f"output_dir={out}"]
    run = Joined(2, train_signalled, [*command, "batch_size=1"], signal.SIGTERM, 2, log=tmp_path / "said")
    assert run.wait() == [128 + signal.SIGTERM] * 2
    assert "stopped by SIGTERM after step 2" in (tmp_path / "said").read_text()
    assert losses(out) == losses(two_processes)[:2]
    with pytest.raises(UserError, match="not the global batch of the run to resume; met 2; wanted 4"):
        main([*command, "batch_size=1"])
    main([*command, "batch_size=2"])
    for one, two in zip(losses(out), losses(two_processes), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    states = [json.loads((run / "checkpoint" / "state.json").read_text()) for run in (out, two_processes)]
    assert states[0]["position"] == states[1]["position"] == {"dual": {"epoch": 1, "samples": 4}}


def test_conversations_of_two_preempted_processes_go_on_in_one(mix_sets: Path, tmp_path: Path):
    """Each process has one sample a step: a picture, a video or a text alone. One process alone takes the same samples
    in the same steps, and its losses are theirs."""
    command = [*talk_arguments(mix_sets), "lora.dropout=0", "accumulation=1"]
    main([*command, "batch_size=2", f"output_dir={tmp_path / 'one'}"])
    out = tmp_path / "run"
    arguments = [*command, "batch_size=1", f"output_dir={out}"]
    run = Joined(2, train_signalled, arguments, signal.SIGTERM, 2, log=tmp_path / "said")
    assert run.wait() == [128 + signal.SIGTERM] * 2, (tmp_path / "said").read_text()[-3000:]
    assert len(losses(out)) == 2
    main([*command, "batch_size=2", f"output_dir={out}"])
    for one, two in zip(losses(out), losses(tmp_path / "one"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    states = [json.loads((run / "checkpoint" / "state.json").read_text()) for run in (out, tmp_path / "one")]
    assert states[0]["position"] == states[1]["position"]


def test_two_processes_with_sharded_parameters(two_processes: Path, tmp_path: Path):
    """FSDP2, as Accelerate's configuration in this repository asks for it, goes on where DDP was and ends where DDP
    does: weights, teacher and moments come out of a checkpoint into shares and get back into one."""
    half = two_processes / "checkpoints" / "step-0000002"
    command = [*given_to_two(two_processes), "batch_size=1", f"output_dir={tmp_path}", f"resume={half}"]
    text = finish(command, tmp_path / "said", processes=2, environment=environment_of("fsdp2.yaml"))
    assert "sharded parameters (FSDP2)" in text
    for one, two in zip(losses(tmp_path), losses(two_processes), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    # How far the two may be apart, and how far the two steps went at least: the teacher moves a thousandth of the way.
    for name, gap, moved in (("trained", 1e-5, 1e-4), ("teacher", 1e-7, 1e-6), ("optimizer", 1e-5, 1e-3)):
        file = f"checkpoint/{name}.safetensors"
        shared, expected = (load_file(run / file) for run in (tmp_path, two_processes))
        before = load_file(half / f"{name}.safetensors")
        assert shared.keys() == expected.keys()
        assert max((shared[key] - expected[key]).abs().max().item() for key in expected) < gap, name
        assert max((before[key] - expected[key]).abs().max().item() for key in expected) > moved, name


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures with masks and without, of videos and of texts alone. Not to be changed."""
    root = tmp_path_factory.mktemp("mixed")
    mixed.write_raw(root, mixed.RECORDS)
    run_pipeline(make_request(mixed.SOURCE, root, shard_bytes=10**7), root / "shards", 1, 0.0)
    return root / "shards"


def test_two_processes_train_conversations_as_one_does(mixed_set: Path, tmp_path: Path):
    """Of samples some of which have no picture, no mask or nothing to say. Resumed from a checkpoint they end bit-equal
    in the same layout, and where they ended in another one: sharded parameters."""
    command = [f"data.shards=[{mixed_set}]", "data.holdout=0", "steps=4", "accumulation=1", *SMALL, "eps=1e-3"]
    command += ["objective=converse", "loss_means=sa2va", "data.frames=2", "data.objects_per_sample=2"]
    command += ["checkpoint={every: 1, keep: 4}"]
    two, again, sharded, one = (tmp_path / name for name in ("two", "again", "sharded", "one"))
    finish([*command, "batch_size=1", f"output_dir={two}"], tmp_path / "said", processes=2)
    command += [f"resume={two}/checkpoints/step-0000002"]
    finish([*command, "batch_size=1", f"output_dir={again}"], tmp_path / "said again", processes=2)
    assert_same(again, two)
    fsdp = environment_of("fsdp2.yaml")
    finish([*command, "batch_size=1", f"output_dir={sharded}"], tmp_path / "said shared", 2, environment=fsdp)
    main([*command[:-1], "batch_size=2", f"output_dir={one}"])
    expected = load_file(two / "checkpoint/trained.safetensors")
    for run in (sharded, one):
        trained = load_file(run / "checkpoint/trained.safetensors")
        assert max((trained[name] - tensor).abs().max().item() for name, tensor in expected.items()) < 1e-5
        for record, other in zip(records(run), records(two), strict=True):
            assert {*record} == {*other} and record["lang"] == pytest.approx(other["lang"], rel=1e-4)
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert any(record.get("bce", 0) > 0 for record in records(two))
