"""The folder of a run before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.lock import hold_lock
from tests.conftest import files_of
from trainer.config import load_config
from trainer.doctor.data import Data
from trainer.doctor.findings import Finding
from trainer.doctor.footprint import measure_footprint
from trainer.doctor.output import check_output
from trainer.train import main


def output(arguments: list[str]) -> Finding:
    """The first finding on the run's folder."""
    config = load_config(arguments)
    try:
        return next(check_output(config, Data.open(config, 1), 1))
    except UserError as error:
        return Finding("fail", "output_dir", str(error))


def test_the_check_reports_what_happens_to_an_existing_run(good: list[str], tmp_path: Path, capfd):
    good = [*good, "data.holdout=0"]
    main([*good, "steps=1"])
    folder = tmp_path / "run"
    before = files_of(folder)
    done = [*good, "steps=1"]
    more = [*good, "steps=4"]
    assert output(done).level == "warn" and "a finished run, 1 steps" in output(done).text
    assert output(more) == Finding(
        "ok", "output_dir", f"{folder}: would go on after step 1, {folder.resolve()}/checkpoints/step-0000001"
    )
    for change, expected in (
        ("lr=1e-2", "met lr=0.01"),
        ("resume=never", "a run stands here"),
        ("batch_size=2", "batch"),
    ):
        finding = output([*more, change])
        assert finding.level == "fail" and expected in finding.text
    lock = hold_lock(folder / "checkpoints/.lock", exclusive=True)
    try:
        assert "another run is writing here" in output(more).text
    finally:
        os.close(lock)
    assert files_of(folder) == before
    tensors = sum(path.stat().st_size for path in (folder / "checkpoints/step-0000001").glob("*.safetensors"))
    assert measure_footprint(load_config(more)).checkpoint_bytes == pytest.approx(tensors, rel=0.05)
