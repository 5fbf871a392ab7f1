"""Runs that are killed, preempted or out of disk: the same command resumes them, with the same result."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.errors import UserError
from tests.conftest import files_of
from tests.joined import Joined
from tests.trainer.runs import SMALL, assert_same, fork_run, losses, records, talk_arguments, train, wait_for
from trainer.checkpoints.preemption import SIGNALS
from trainer.checkpoints.run_folder import RunFolder
from trainer.checksums import ListedFiles
from trainer.data.stream import Stream
from trainer.train import main
from trainer.trained import load_trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(sav_set: Path) -> list[str]:
    """Arguments of a run of 4 steps, more than an epoch. Its dropout draws from the random state of the process."""
    run = [f"data.shards=[{sav_set}]", "batch_size=1", "accumulation=1", "steps=4", "data.holdout=0.8"]
    run.append("data.holdout_by=sample")  # all samples are views of two photographs
    return [
        *run,
        "eval={every: 3, samples: 1, show: 1}",
        "checkpoint={every: 1, keep: 1}",
        *SMALL,
        "lora.dropout=0.2",
        "rates.mlp1=1e-4",
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was never interrupted. Not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed")
    main([*arguments, f"output_dir={out}"])
    state = json.loads((out / "checkpoint" / "state.json").read_text())
    assert state["position"]["dual"]["epoch"] > 0
    return out


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handlers that a preempted run replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def recorded_steps(run: Path) -> list[tuple[int, bool]]:
    """Return (step, whether it is an evaluation) of each record."""
    return [(record["step"], "loss" not in record) for record in records(run)]


def test_kill_9_at_any_moment(arguments: list[str], undisturbed: Path, tmp_path: Path):
    out = tmp_path / "run"
    run = fork_run([*arguments, f"output_dir={out}"], tmp_path / "said", processes=1)
    after = random.randrange(3)
    wait_for(lambda: len(losses(out)) > after, run)
    time.sleep(random.random() / 2)
    run.processes[0].kill()
    run.wait()
    assert "Held-out samples after step 0" in (out / "report.html").read_text()
    print(f"killed after {records(out)[-1:]} and {sorted(p.name for p in (out / 'checkpoints').iterdir())}")
    # TensorBoard reads files in the order of the second in their names, then by process.
    last = max(int(file.name.split(".")[3]) for file in (out / "tensorboard").glob("events.out.tfevents.*"))
    time.sleep(max(0.0, last + 1 - time.time()))
    main([*arguments, f"output_dir={out}"])
    assert_same(out, undisturbed)
    assert recorded_steps(out) == recorded_steps(undisturbed)
    events = EventAccumulator(str(out / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4]


def slowly(arguments: list[str]) -> None:
    """Train; the disk is slower than step 2, and stands still in the middle of the checkpoint of step 2."""
    write = ListedFiles.write_tensors

    def stuck(files: ListedFiles, name: str, tensors: dict[str, torch.Tensor]) -> None:
        time.sleep(0.5)
        write(files, name, tensors)
        if "0000002" in files.folder.name and name.startswith("teacher"):
            time.sleep(300)

    ListedFiles.write_tensors = stuck  # type: ignore[method-assign]
    train(arguments)


def test_kill_9_while_a_checkpoint_is_written(arguments: list[str], undisturbed: Path, tmp_path: Path):
    """The run has gone on with step 3 by then, and waits for the checkpoint of step 2 before that of step 3. That of
    step 1 was written while step 2 changed the weights, and holds what they were before."""
    out = tmp_path / "run"
    run = Joined(1, slowly, [*arguments, f"output_dir={out}"], log=tmp_path / "said")
    wait_for(lambda: len(losses(out)) == 3, run)
    time.sleep(0.5)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        ".lock",
        ".step-0000002.tmp",
        "latest",
        "step-0000001",
    ]
    run.processes[0].kill()
    run.wait()
    main([*arguments, f"output_dir={out}"])
    assert_same(out, undisturbed)
    assert recorded_steps(out) == recorded_steps(undisturbed)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == sorted(
        path.name for path in (undisturbed / "checkpoints").iterdir()
    )


def test_a_signal_saves_a_checkpoint_and_ends_the_run(
    arguments: list[str], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """SIGTERM in step 3, before an evaluation, which follows when the run resumes. SIGINT in the last step.

    The run writes profiles of what it does of steps 2 to 5, which change no bit.
    """
    profiled = [*arguments, "profile={from: 2, steps: 4}"]
    original = Stream.step

    def step(stream: Stream):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), number)
        return original(stream)

    write = ListedFiles.write_tensors

    def slow(*how) -> None:
        time.sleep(0.3)  # the signal comes while the checkpoint before is being written
        write(*how)

    monkeypatch.setattr(ListedFiles, "write_tensors", slow)
    monkeypatch.setattr(Stream, "step", step)
    for stopped_at, left, number in ((3, 3, signal.SIGTERM), (4, 1, signal.SIGINT)):  # noqa: B007 (`step` counts down)
        with pytest.raises(SystemExit) as ended:
            main([*profiled, f"output_dir={tmp_path}"])
        assert ended.value.code == 128 + number
        text = capsys.readouterr().out
        assert f"stopped by {number.name} after step {stopped_at}" in text
        assert f"accelerate launch --num_processes 1 trainer/train.py 'data.shards=[{arguments[0][13:-1]}]'" in text
        assert losses(tmp_path) == losses(undisturbed)[:stopped_at]
        assert load_trained(tmp_path / "checkpoint")[1].step == stopped_at
    main([*arguments, f"output_dir={tmp_path}"])
    assert_same(tmp_path, undisturbed)
    assert recorded_steps(tmp_path) == recorded_steps(undisturbed)
    assert (tmp_path / "report.html").exists()
    traces = {path.name: parts_of(path) for path in (tmp_path / "profile").iterdir()}
    assert traces == {"steps-2-3-process-0.json": 2, "steps-4-4-process-0.json": 1}


def parts_of(path: Path) -> int:
    """Check the Chrome trace at `path`, and return how many steps it holds."""
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
    parts = [event for event in events if event["name"] in ("data_wait", "forward", "backward", "optimiser")]
    parts.sort(key=lambda event: event["ts"])
    steps = sum(event["name"] == "optimiser" for event in parts)
    assert [event["name"] for event in parts] == ["data_wait", "forward", "backward", "optimiser"] * steps
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in itertools.pairwise(parts))
    return steps


def test_conversations_go_on_bit_for_bit(mix_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped by SIGTERM in step 2 of 4, within an epoch, with samples grouped by length and a fraction of a source."""
    arguments = [*talk_arguments(mix_sets), "batch_size=1", "accumulation=2"]
    main([*arguments, f"output_dir={tmp_path / 'undisturbed'}"])
    original = Stream.step
    taken = []

    def step(stream: Stream):
        taken.append(stream)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(stream)

    monkeypatch.setattr(Stream, "step", step)
    with pytest.raises(SystemExit):
        main([*arguments, f"output_dir={tmp_path / 'run'}"])
    assert len(losses(tmp_path / "run")) == 2
    main([*arguments, f"output_dir={tmp_path / 'run'}"])
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_finished_run_is_reported_and_left_alone(arguments: list[str], undisturbed: Path, capsys):
    before = files_of(undisturbed)
    main([*arguments, f"output_dir={undisturbed}"])
    assert "is finished: 4 steps" in capsys.readouterr().out
    assert files_of(undisturbed) == before


def test_a_full_disk_leaves_the_previous_checkpoint(arguments: list[str], undisturbed: Path, tmp_path: Path):
    """The disk takes no file of more than 1 MB from the second checkpoint on. It is written beside the third step."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = RunFolder.save
    saved = []
    arguments = [*arguments, "eval.every=9"]

    def limited(self, step, *args):
        if saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        saved.append(step)
        return save(self, step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", limited)
        try:
            with pytest.raises(UserError, match="the checkpoint of step 2 could not be written") as raised:
                main([*arguments, f"output_dir={tmp_path}"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(raised.value)
    assert len(losses(tmp_path)) in (2, 3)
    assert "step-0000001 stands as it was; make room, and start the same command again" in message
    needed = int(message.split("wanted ")[1].split(" bytes")[0].replace(",", ""))
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").glob("*.safetensors"))
    assert 0.9 * written < needed < written
    assert load_trained(tmp_path / "checkpoint")[1].step == 1
    main([*arguments, f"output_dir={tmp_path}"])
    assert_same(tmp_path, undisturbed)


def test_a_damaged_checkpoint_is_one_line(undisturbed: Path, arguments: list[str], tmp_path: Path):
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    optimizer = tmp_path / "run" / "checkpoint" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"optimizer\.safetensors: not the bytes that were written"):
        main([*arguments, f"output_dir={tmp_path / 'run'}", "steps=6"])
