"""Where a run begins: what is resumed, what is refused, and why."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from shards.atomic import atomic_write
from shards.errors import UserError
from trainer.checkpoints.checkpoint import State
from trainer.checkpoints.resume import Beginning, begin, keep_earlier_defaults
from trainer.checkpoints.run_folder import RunFolder
from trainer.checksums import ListedFiles
from trainer.config import Config, flat, load_config

DATA = ["sav: 12 samples, plan 0123"]


@pytest.fixture
def run(tmp_path: Path):
    run = RunFolder(tmp_path / "run", keep=3)
    yield run
    run.close()


@pytest.fixture
def config(run: RunFolder) -> Config:
    return load_config(["steps=500", f"output_dir={run.folder}", "data.sources={sav: 2}"])


def save(run: RunFolder, config: Config, *steps: int) -> None:
    """Save checkpoints of `steps`, and records of all steps, of one more, and half of another."""
    run.open()
    for step in steps:
        position = {"dual": {"epoch": 0, "samples": 8 * step}}
        state = {"version": 1, **asdict(State(step, position, 8, None, {}, flat(config), DATA))}

        def write(folder: Path, state: dict = state) -> None:
            atomic_write(folder / "state.json", json.dumps(state).encode())
            atomic_write(folder / "rng.json", b"[]")

        run.save(step, 0, write)
    run.close()
    records = [{"step": step, "loss": 1.0} for step in range(1, steps[-1] + 2)]
    text = "".join(json.dumps(record) + "\n" for record in records) + '{"step": 99, "lo'
    (run.folder / "metrics.jsonl").write_text(text)


def began(run: RunFolder, config: Config, data: list[str] = DATA, samples: int = 8) -> Beginning:
    run.close()
    return begin(config, run, data, samples)


def test_a_run_without_a_checkpoint_begins_anew(run, config):
    for resume in ("auto", "never"):
        config.resume = resume
        assert began(run, config) == Beginning()


def test_the_latest_checkpoint_is_resumed_and_the_records_are_cut_back_to_it(run, config):
    save(run, config, 2, 4)
    begun = began(run, config)
    assert begun.checkpoint and begun.checkpoint.name == "step-0000004" and begun.step == 4
    assert begun.position == {"dual": {"epoch": 0, "samples": 32}}
    assert [record["step"] for record in begun.records] == [1, 2, 3, 4]
    assert not begun.evaluated and not begun.finished


@pytest.mark.parametrize(
    "changed",
    [
        *(
            "steps=900",
            "eval.every=7",
            "data.threads=5",
            "data.prefetch=0",
            "data.normalise=device",
            "checkpoint.every=3",
        ),
        *("gradient_checkpointing=true", "compile=true", "data.shards=[elsewhere]", "batch_size=1"),
    ],
)
def test_keys_that_do_not_affect_the_result_may_change(run, config, changed):
    save(run, config, 4)
    new_config = load_config(["steps=500", f"output_dir={run.folder}", "data.sources={sav: 2}", changed])
    assert began(run, new_config).step == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("lr=0.5", "met lr=0.5; wanted lr=2e-05"),
        ("data.sources={sav: 3}", "met data.sources.sav=3; wanted data.sources.sav=2"),
        ("data.sources={sav: 2, coco: 4}", "met data.sources.coco=4; wanted data.sources.coco=nothing"),
        ("data.where=area > 0.1", "met data.where=area > 0.1; wanted data.where=None"),
        ("data.where={sav: area > 0.1}", "met data.where.sav=area > 0.1"),
        ("data.texts=[captions.caption]", "met data.texts=['captions.caption']; wanted data.texts=['source']"),
        ("trainable=[lora]", "met trainable=['lora']; wanted trainable=['lora', 'mlp1'"),
        ("model.path=x/y", "met model.path=x/y; wanted model.path=None"),
    ],
)
def test_another_configuration_is_refused_with_the_key_that_changed(run, config, changed, message):
    save(run, config, 4)
    new_config = load_config(["steps=500", f"output_dir={run.folder}", "data.sources={sav: 2}", changed])
    with pytest.raises(UserError, match="not the configuration of the run to resume") as raised:
        began(run, new_config)
    assert message in str(raised.value) and "another output_dir" in str(raised.value)


def test_a_key_newer_than_the_checkpoint_counts_as_its_default(run, config):
    save(run, config, 4)
    path = run.checkpoints / "latest" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["clip"]
    path.write_text(json.dumps(state))
    assert began(run, config).step == 4
    config.clip = 3.0
    with pytest.raises(UserError, match=r"met clip=3.0; wanted clip=1.0"):
        began(run, config)


def test_a_run_that_decayed_all_parameters_keeps_doing_so(run, config):
    """Its checkpoint has no key for it; the default has changed since."""
    save(run, config, 4)
    path = run.checkpoints / "latest" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["weight_decay_on"]
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"met weight_decay_on=matrices; wanted weight_decay_on=all; give it as"):
        began(run, config)
    kept, notes = keep_earlier_defaults(config, run)
    assert kept.weight_decay_on == "all" and ["weight_decay_on=all: " in line for line in notes] == [True]
    assert began(run, kept).step == 4


def test_a_run_that_held_out_by_sample_keeps_doing_so_and_refuses_another_value(run, config):
    save(run, config, 4)
    config.data.holdout_by = "folder"
    with pytest.raises(UserError, match=r"met data.holdout_by=folder; wanted data.holdout_by=picture"):
        began(run, config)
    path = run.checkpoints / "latest" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["data.holdout_by"]
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"met data.holdout_by=folder; wanted data.holdout_by=sample"):
        began(run, keep_earlier_defaults(config, run)[0])
    config.data.holdout_by = "picture"  # the default: it may not have been given
    kept, notes = keep_earlier_defaults(config, run)
    assert kept.data.holdout_by == "sample" and notes[0].startswith("data.holdout_by=sample: the checkpoint is of a")
    assert began(run, kept).step == 4


def test_other_shards_and_another_global_batch_are_refused(run, config):
    save(run, config, 4)
    with pytest.raises(UserError, match=r"not the shards of the run.*met sav: 13.*wanted sav: 12"):
        began(run, config, data=["sav: 13 samples, plan 4567"])
    with pytest.raises(UserError, match=r"not the global batch.*met 16; wanted 8 samples per optimiser step"):
        began(run, config, samples=16)


def test_resume_never_refuses_a_folder_with_a_run(run, config):
    save(run, config, 4)
    config.resume = "never"
    with pytest.raises(UserError, match=r"a run stands here; met step-0000004.*another output_dir"):
        began(run, config)


def test_a_named_checkpoint_is_used_only_where_the_folder_has_none(run, config, tmp_path: Path):
    save(run, config, 2, 4)
    other = RunFolder(tmp_path / "other", keep=1)
    named = load_config(["steps=500", f"output_dir={other.folder}", "data.sources={sav: 2}"])
    for name, step in (("run", 4), ("run/checkpoint", 4), ("run/checkpoints/step-0000002", 2)):
        named.resume = str(tmp_path / name)
        begun = began(other, named)
        assert (begun.step, len(begun.records)) == (step, step)
    other.close()
    save(other, named, 3)
    assert began(other, named).checkpoint == other.checkpoints / "step-0000003"  # the same command goes on
    other.close()


def test_a_named_checkpoint_that_is_missing_or_not_the_latest_is_refused(run, config, tmp_path: Path):
    config.resume = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"resume: no checkpoint here; met .*nowhere"):
        began(run, config)
    run.close()
    save(run, config, 2, 4)
    config.resume = str(run.checkpoints / "step-0000002")
    with pytest.raises(UserError, match=r"a later checkpoint stands here; met step-0000004; wanted step-0000002"):
        began(run, config)
    config.resume = str(run.checkpoints / "step-0000004")
    assert began(run, config).step == 4


def test_a_run_is_finished_when_its_report_is_written(run, config):
    save(run, config, 4)
    config.steps = 4
    assert not began(run, config).finished
    run.report.write_text("")
    assert began(run, config).finished
    config.steps = 6
    assert not began(run, config).finished
    config.steps = 4
    os.utime(run.report, (0, 0))  # of a shorter run that was gone on with
    assert not began(run, config).finished


@pytest.mark.parametrize("name", ["state.json", "rng.json", "weights"])
def test_a_checkpoint_that_has_changed_is_not_resumed(run, config, name):
    save(run, config, 5)
    folder = run.checkpoints / "step-0000005"
    (folder / "weights").write_bytes(bytes(1000))
    with ListedFiles(folder) as files:
        for listed in ("state.json", "rng.json", "weights"):
            files.add(listed)
    assert began(run, config).step == 5
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: not the bytes that were written"):
        began(run, config)


def test_a_checkpoint_without_checksums_is_resumed_with_a_warning(run, config, caplog):
    save(run, config, 5)
    assert began(run, config).step == 5
    assert "step-0000005: no checksums.json" in caplog.text
