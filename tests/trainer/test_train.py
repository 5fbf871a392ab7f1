"""Runs from start to end: the files that they write, and the errors that stop them."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.errors import UserError
from shards.recipe import RECIPES
from tests.trainer.runs import REPOSITORY, SMALL
from trainer.config import load_config
from trainer.model.sa2va import build
from trainer.train import main
from trainer.trained import load_trained


@pytest.mark.slow
def test_a_run_leaves_its_configuration_weights_metrics_and_report(sav_set: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    arguments = [f"data.shards=[{sav_set}]", f"output_dir={out}", "steps=2", "batch_size=1", "accumulation=2"]
    arguments += [
        "rates={text_hidden_fcs: 1e-6}",
        "data.holdout=0.3",
        "eval.every=1",
        "eval.samples=1",
        "eval.show=1",
        *SMALL,
    ]
    main(arguments)
    text = capsys.readouterr().out
    assert (
        "step 00001/00002 (50.0%) | loss " in text and "data wait" in text and f"report: {out / 'report.html'}" in text
    )
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], "loss" in r) for r in records] == [(0, False), (1, True), (1, False), (2, True), (2, False)]
    assert all(math.isfinite(value) for r in records for value in r.values())
    assert [r["lr"] for r in records if "lr" in r] == pytest.approx([1e-3, 5e-4])  # the schedule steps once a step
    assert "held_out/mask_loss" in records[0] and "held_out/iou" in records[0]
    assert load_config([str(out / "config.yaml")]) == load_config(arguments)
    events = EventAccumulator(str(out / "tensorboard"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("held_out/dual")] == [0, 1, 2]  # a contact sheet an evaluation
    assert all(r["tokens_per_second"] > 0 and r["memory_bytes"] > 1e8 for r in records if "loss" in r)
    report = (out / "report.html").read_text()
    assert "Held-out samples after step 0" in report and "Held-out samples after step 2" in report
    assert (out / "report.html").stat().st_size > 20_000
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "tensorboard",
    ]
    trained, origin = load_trained(out / "checkpoint")
    model = trained.model
    assert (origin.step, origin.batch, origin.recipe, origin.objective) == (2, 2, RECIPES["default"], "dual")
    saved = load_file(out / "checkpoint" / "trained.safetensors")
    assert saved.keys() == model.state_dict().keys()  # of a random model no file holds anything
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)
    torch.manual_seed(0)
    moved = {n: (saved[n] - p).abs().max().item() for n, p in build("tiny").named_parameters() if n in saved}
    assert max(v for n, v in moved.items() if n.startswith("mlp1.")) > 5e-4
    assert 0 < max(v for n, v in moved.items() if n.startswith("text_hidden_fcs.")) < 5e-6  # a rate of its own


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_steps(
    sav_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The learning rate is so high that the first update ruins the weights; no second one may follow."""
    updates = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: updates.append(1) or original(self, *a))
    arguments = [f"data.shards=[{sav_set}]", f"output_dir={tmp_path}", "steps=5", "batch_size=1", "accumulation=1"]
    with pytest.raises(UserError, match="loss or gradient is not finite") as raised:
        main([*arguments, "data.holdout=0", *SMALL, "lr=1e30"])
    assert len(updates) == 1
    assert "step 2, objective dual, samples masklet_data_0" in str(raised.value)
    assert "nan" in str(raised.value)
    assert not (tmp_path / "checkpoint/trained.safetensors").exists()


def run_as_script(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> SystemExit:
    monkeypatch.setattr(sys, "argv", ["trainer/train.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "trainer" / "train.py"), run_name="__main__")
    return ended.value


def test_a_users_mistake_is_one_line_and_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = run_as_script(["data.shards=[/nowhere]", f"output_dir={tmp_path}", "mixed_precision=no"], monkeypatch)
    # Python prints a string that a program exits with to stderr, and the exit status is 1.
    assert isinstance(ended.code, str) and ended.code.startswith("error: /nowhere/manifest.json: ")
    assert "\n" not in ended.code


def test_help_is_the_manual(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert not run_as_script(["--help"], monkeypatch).code
    assert "accelerate launch trainer/train.py [config.yaml] [key=value ...]" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["steps=0", "model.preset=huge", "data.shards=[]", "trainable=[all]"])
def test_mistakes_are_found_before_the_first_step(sav_set: Path, tmp_path: Path, argument: str):
    arguments = [f"data.shards=[{sav_set}]", "batch_size=1", "data.holdout=0", f"output_dir={tmp_path}", *SMALL]
    with pytest.raises(UserError, match=argument.split("=")[0]):
        main([*arguments, argument])
