"""Checks before a run: all green on a sound one, and red by name for each fault that is planted."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file

import cli
from shards.errors import UserError
from shards.lock import hold_lock
from shards.manifest import pack_manifest, sha256
from shards.reader import ShardSet
from tests.conftest import files_of
from tests.trainer.runs import SMALL
from trainer.config import Config, load_config
from trainer.doctor import checks, machine
from trainer.doctor.checks import check_output, doctor, examine
from trainer.doctor.data import Data
from trainer.doctor.findings import Finding
from trainer.doctor.outline import Outline, outline
from trainer.model.sa2va import build
from trainer.model.trainable import set_trainable
from trainer.released.folder import save_model
from trainer.train import main
from trainer.trained import base_model

REPOSITORY = Path(__file__).parents[2]
GOOD = [*SMALL, "steps=4", "batch_size=1", "data.holdout=0.3", "eval.every=2"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


_OUTLINES: dict[str, Outline] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """The first and the last sample of each set are read, and each model is built once."""

    def remembered(config: Config) -> Outline:
        key = repr((config.model, config.trainable, config.lora))
        if key not in _OUTLINES:
            _OUTLINES[key] = outline(config)
        return _OUTLINES[key]

    monkeypatch.setattr("trainer.doctor.data.PROBED", 2)
    monkeypatch.setattr("trainer.doctor.checks.outline", remembered)


@pytest.fixture
def good(sav_set: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that is sound."""
    return [*GOOD, f"data.shards=[{sav_set}]", f"output_dir={tmp_path / 'run'}"]


def found(arguments: list[str], level: str = "fail") -> list[tuple[str, str]]:
    return [(f.check, f.said) for f in examine(arguments) if f.level == level]


def test_a_sound_run_is_green_and_nothing_is_written(good: list[str], sav_set: Path, tmp_path: Path, capsys):
    before = files_of(sav_set)
    assert doctor(good)
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "ready to train" and {line.split()[0] for line in lines} == {"ok"}
    checks = ("configuration", "versions", "device", "data", "samples", "objective", "losses", "schedule")
    more = ("model", "trainable", "memory", "disk", "output_dir")
    assert {*checks, *more} == {line.split()[1] for line in lines}
    assert not [*tmp_path.iterdir()] and files_of(sav_set) == before


def test_a_fault_is_exit_status_1(good: list[str], monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cli.py", "doctor", *good, "step=3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "fail configuration unknown key; met step; did you mean steps?" in said
    assert said.endswith("not ready: mend what failed first\n")


@pytest.mark.parametrize(
    ("given", "check", "said"),
    [
        ("warmup_steps=4", "configuration", "warmup_steps: out of range; met 4; wanted < 4"),
        ("data.shards=[]", "data", "no shard folder given"),
        ("data.shards=[/nowhere]", "data", "/nowhere/manifest.json: no manifest"),
        ("data.shards=[{sav},{sav}]", "data", "sav: the same set as"),
        ("data.sources={{refcoco: 2}}", "data", "data.sources: no shards of this source; met refcoco; wanted sav"),
        ("batch_size=100", "data", "too few samples in the train part"),
        ("objective=segment", "data objective", "0 of 12 samples have an object with a text; train this set with"),
        ("lambda_mask=0 lambda_dice=0 lambda_lang=0 lambda_anchor=0", "losses", "all weights are 0"),
        ("trainable=[everything]", "model", "trainable: unknown part; met everything"),
        ("model.path=/nowhere", "model", "/nowhere: no such folder"),
        ("output_dir={sav}/manifest.json/run", "output_dir", "manifest.json is not a folder"),
        ("resume=/nowhere", "output_dir", "resume: no checkpoint here; met /nowhere"),
    ],
)
def test_a_fault_is_red_and_named(good: list[str], sav_set: Path, given: str, check: str, said: str):
    failed = found([*good, *given.format(sav=sav_set).split(" l")[:1], *(f"l{a}" for a in given.split(" l")[1:])])
    assert [name for name, _ in failed] == check.split(), failed
    assert said in failed[-1][1]


@pytest.mark.parametrize(
    ("given", "check", "said"),
    [
        (["data.holdout=0"], "schedule", "never evaluated"),
        (["eval.every=9"], "schedule", "eval.every 9 is beyond the last step"),
        (["warmup_steps=3"], "schedule", "most of the run is warm-up"),
        (["lambda_mask=0", "lambda_dice=0"], "losses", "no mask is learnt"),
        (["mixed_precision=bf16"], "device", "set mixed_precision=no"),
    ],
)
def test_what_is_odd_is_yellow(good: list[str], given: list[str], check: str, said: str):
    (warned,) = found([*good, *given], "warn")
    assert warned[0] == check and said in warned[1]
    assert not found([*good, *given])


def damage(sav_set: Path, folder: Path, how: str) -> Path:
    """A copy of a sound set with one fault."""
    shutil.copytree(sav_set, folder)
    tar, index, manifest = folder / "sav-000000.tar", folder / "index.npy", folder / "manifest.json"
    if how == "missing":
        tar.unlink()
    elif how == "short":
        tar.write_bytes(tar.read_bytes()[:-10_240])
    elif how == "index":
        data = bytearray(index.read_bytes())
        data[-1] ^= 1
        index.write_bytes(data)
    elif how == "texts":
        rows = np.load(index)
        rows["texts"][1:] = 1
        np.save(index, rows)
        body = json.loads(manifest.read_text())
        body |= {"source": "folder", "plan": "1" * 64, "index_sha256": sha256(index.read_bytes())}
        manifest.write_bytes(pack_manifest(body))
    elif how == "pixels":
        row, data = ShardSet(sav_set).index[0], bytearray(tar.read_bytes())
        data[int(row["offset"]) + 3000 : int(row["offset"]) + 400_000] = bytes(397_000)
        tar.write_bytes(data)
    else:
        body = json.loads(manifest.read_text())
        body["recipe"]["image_filter"] = "bicubic"
        values = {k: v for k, v in body["recipe"].items() if k != "name"}
        body["recipe_hash"] = sha256(json.dumps(values, sort_keys=True).encode())[:16]
        body["plan"] = "0" * 64
        manifest.write_bytes(pack_manifest(body))
    return folder


def test_a_mix_is_checked_by_objective(good: list[str], sav_set: Path, tmp_path: Path):
    """The first sample of a set has no text: the run leaves it out, and the doctor says so."""
    texted = damage(sav_set, tmp_path / "texted", "texts")
    mixed = [*good, f"data.shards=[{sav_set},{texted}]", "mix={dual: {sources: [sav]}, segment: {sources: [folder]}}"]
    assert not found(mixed)
    (warned,) = found(mixed, "warn")
    assert warned[0] == "objective" and "texted: 11 of 12 samples have an object with a text, the others" in warned[1]
    said = [text for _, text in found(mixed, "ok")]
    (counts,) = (text for text in said if "samples an epoch" in text)
    assert "dual: 3 samples an epoch, 9 held out by picture; segment: 3 samples an epoch, 8 held out" in counts
    assert any("segment: lambda_mask" in text for text in said)
    (failed,) = found([*mixed, "mix.segment.sources=[coco]"])
    assert failed[0] == "data" and "mix: no shards of this source; met coco" in failed[1]


@pytest.mark.parametrize(
    ("how", "check", "said"),
    [
        ("missing", "data", "sav-000000.tar: no such file; wanted"),
        ("short", "data", "bytes; cop"),
        ("index", "data", "index.npy: SHA-256 of the index"),
        ("pixels", "samples", "sa2va-shards verify-shard"),
        ("recipe", "data", "shards of different recipes"),
    ],
)
def test_damaged_shards_are_named(good: list[str], sav_set: Path, tmp_path: Path, how: str, check: str, said: str):
    other = damage(sav_set, tmp_path / "other", how)
    paths = f"{sav_set},{other}" if how == "recipe" else other
    failed = found([*good, f"data.shards=[{paths}]"])
    assert failed and failed[0][0] == check and said in failed[0][1], failed
    assert str(other) in failed[0][1]


def test_memory_and_disk(good: list[str], monkeypatch: pytest.MonkeyPatch):
    little = namedtuple("Memory", "available")(10**6)
    monkeypatch.setattr("trainer.doctor.checks.psutil.virtual_memory", lambda: little)
    full = namedtuple("Usage", "free")(10**8)
    monkeypatch.setattr("trainer.doctor.checks.shutil.disk_usage", lambda path: full)
    failed = dict(found(good))
    assert failed.keys() == {"memory", "disk"}
    assert "model.dtype=bfloat16" in failed["memory"] and "1 MB of memory free" in failed["memory"]
    assert "4 checkpoints of" in failed["disk"] and "100 MB free; make room" in failed["disk"]


def test_versions(monkeypatch: pytest.MonkeyPatch):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert all(name + wanted in project["dependencies"] for name, wanted in machine.NEEDED.items())
    assert [finding.level for finding in machine.check_versions()] == ["ok"]
    real = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda n: "0.1.0" if n == "peft" else real(n))
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["numpy", "torch==2.1.0"])
    first, second = machine.check_versions()
    assert first.level == second.level == "fail"
    assert "peft 0.1.0, wanted >=0.17,<1" in first.said and "was built for torch ==2.1.0" in second.said


def test_a_gpu_without_bf16(monkeypatch: pytest.MonkeyPatch):
    old = namedtuple("Properties", "name total_memory major")("V100", 16 * 10**9, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: old)
    (finding,) = machine.check_device(load_config([]))
    assert finding.level == "fail" and "set mixed_precision=no" in finding.said
    (finding,) = machine.check_device(load_config(["mixed_precision=no"]))
    assert finding.level == "ok"


def output(arguments: list[str]) -> Finding:
    """What is said of the run's folder."""
    config = load_config(arguments)
    try:
        return next(check_output(config, Data.open(config, 1), 1))
    except UserError as error:
        return Finding("fail", "output_dir", str(error))


def test_what_would_become_of_a_run_that_stands_there(good: list[str], tmp_path: Path, capfd):
    good = [*good, "data.holdout=0"]
    main([*good, "steps=1"])
    folder = tmp_path / "run"
    before = files_of(folder)
    done, more = [*good, "steps=1"], [*good, "steps=4"]
    assert output(done).level == "warn" and "a finished run, 1 steps" in output(done).said
    assert output(more) == Finding(
        "ok", "output_dir", f"{folder}: would go on after step 1, {folder.resolve()}/checkpoints/step-0000001"
    )
    for given, said in (("lr=1e-2", "met lr=0.01"), ("resume=never", "a run stands here"), ("batch_size=2", "batch")):
        finding = output([*more, given])
        assert finding.level == "fail" and said in finding.said
    lock = hold_lock(folder / "checkpoints/.lock", exclusive=True)
    try:
        assert "another run is writing here" in output(more).said
    finally:
        os.close(lock)
    assert files_of(folder) == before
    tensors = sum(path.stat().st_size for path in (folder / "checkpoints/step-0000001").glob("*.safetensors"))
    assert outline(load_config(more)).checkpoint_bytes == pytest.approx(tensors, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_outline_counts_what_loading_gives(tmp_path: Path, dtype: str):
    """From the headers of a released folder, and from a preset."""
    torch.manual_seed(0)
    save_model(build("tiny"), tmp_path / "released")
    for source in (f"model.path={tmp_path / 'released'}", "model.preset=tiny"):
        config = load_config([source, f"model.dtype={dtype}", "lora.r=4"])
        base = base_model(config.model, "cpu")
        model = base.model
        wanted = set_trainable(model, config.trainable, **vars(config.lora))
        met = outline(config)
        assert met.trainable == wanted
        assert met.parameters == sum(p.numel() for p in model.parameters())
        assert sum(met.frozen_bytes.values()) == sum(p.nbytes for p in model.parameters() if not p.requires_grad)
        assert met.frozen_bytes.keys() == {dtype}
        assert met.trainable_bytes == 4 * sum(wanted.values())
        assert bool(met.new_bytes) == bool(base.new)
        one, two = sum(met.memory(1).values()), sum(met.memory(2).values())
        assert sum(met.memory(1, project=True).values()) == one + 2 * met.trainable_bytes
        assert one == sum(met.frozen_bytes.values()) + 20 * sum(wanted.values()) == two - met.trainable_bytes


def test_weights_that_do_not_fit_are_found_in_their_headers(good: list[str], tmp_path: Path):
    save_model(build("tiny"), tmp_path / "released")
    file = tmp_path / "released/model.safetensors"
    tensors = load_file(file)
    tensors.pop("mlp1.0.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    (failed,) = found([*good, f"model.path={tmp_path / 'released'}"])
    assert failed[0] == "model" and "1 missing: mlp1.0.weight" in failed[1]


def test_it_says_what_it_is_doing_before_it_does_it(good: list[str], monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    opened, built = checks.Data.open, checks.outline
    monkeypatch.setattr(checks.Data, "open", lambda *a: order.append("open") or opened(*a))
    monkeypatch.setattr(checks, "outline", lambda *a: order.append("outline") or built(*a))
    for finding in checks.examine(good, order.append):
        order.append(finding.check)
    told = [order[order.index(work) - 1] for work in ("open", "outline")]
    assert told == [
        "opening 1 shard set(s), and dividing their samples",
        "building the model without memory, and reading the headers of its weights",
    ]
    assert order[order.index("samples") - 1] == "decoding up to 16 samples of each set"
