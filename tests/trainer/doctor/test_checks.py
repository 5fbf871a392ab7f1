"""Checks before a run: all pass on a valid run, and each planted fault fails the check that names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cli
from tests.conftest import files_of
from tests.trainer.doctor.found import found
from trainer.doctor import checks, data, footprint
from trainer.doctor.checks import doctor


def test_a_valid_run_passes_all_checks_and_nothing_is_written(good: list[str], sav_set: Path, tmp_path: Path, capsys):
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
    text = capsys.readouterr().out
    assert "fail configuration unknown key; met step; did you mean steps?" in text
    assert text.endswith("not ready: mend what failed first\n")


def test_a_mistake_in_the_configuration_is_found_without_pytorch():
    code = (
        "import sys\n"
        "from trainer.doctor.checks import examine\n"
        "print([finding.level for finding in examine(['step=3'])], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ok', 'fail'] False\n"


@pytest.mark.parametrize(
    ("changes", "check", "expected"),
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
def test_a_fault_fails_its_check_and_is_named(good: list[str], sav_set: Path, changes: str, check: str, expected: str):
    failed = found([*good, *changes.format(sav=sav_set).split(" l")[:1], *(f"l{a}" for a in changes.split(" l")[1:])])
    assert [name for name, _ in failed] == check.split(), failed
    assert expected in failed[-1][1]


@pytest.mark.parametrize(
    ("changes", "check", "expected"),
    [
        (["data.holdout=0"], "schedule", "never evaluated"),
        (["eval.every=9"], "schedule", "eval.every 9 is beyond the last step"),
        (["warmup_steps=3"], "schedule", "most of the run is warm-up"),
        (["lambda_mask=0", "lambda_dice=0"], "losses", "no mask is learnt"),
        (["mixed_precision=bf16"], "device", "set mixed_precision=no"),
    ],
)
def test_an_unusual_setting_is_a_warning(good: list[str], changes: list[str], check: str, expected: str):
    (warned,) = found([*good, *changes], "warn")
    assert warned[0] == check and expected in warned[1]
    assert not found([*good, *changes])


def test_each_slow_check_is_announced_before_it_starts(good: list[str], monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    opened = data.Data.open
    built = footprint.measure_footprint
    monkeypatch.setattr(data.Data, "open", lambda *a: order.append("open") or opened(*a))
    monkeypatch.setattr(footprint, "measure_footprint", lambda *a: order.append("footprint") or built(*a))
    for finding in checks.examine(good, order.append):
        order.append(finding.check)
    announced = [order[order.index(step) - 1] for step in ("open", "footprint")]
    assert announced == [
        "opening 1 shard set(s), and dividing their samples",
        "building the model without memory, and reading the headers of its weights",
    ]
    assert order[order.index("samples") - 1] == "decoding up to 2 samples of each set"
