"""Every source from its raw files to two training steps, by the commands of the README."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import cli
from pipeline.sources import SOURCES
from shards.manifest import Manifest
from tests.layouts import CASES, PARTS
from tests.models import composed_once  # noqa: F401 (a fixture)
from tests.trainer.runs import SMALL
from trainer import build, train
from trainer.trained import base_model


@pytest.fixture(scope="module", autouse=True)
def built_once() -> Iterator[None]:
    """One model, copied for each run, which takes a tenth of the time of building it."""
    built: list[Any] = []

    def copied(config: Any, device: Any) -> Any:
        built[:] = built or [base_model(config, device)]
        return deepcopy(built[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "base_model", copied)
        yield


def test_every_source_has_a_case():
    assert CASES.keys() | {f"{name}-{part}" for name in PARTS for part in PARTS[name]} == SOURCES.keys()


def call(*arguments: object) -> int:
    """Return the exit status of `cli.py` with these arguments, run in this process."""
    return cli.app([*map(str, arguments)], standalone_mode=False) or 0


@pytest.mark.slow
@pytest.mark.parametrize("source", CASES)
def test_from_raw_files_to_two_steps(source, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("trainer.measure.held_out.write_report", lambda *_: None)  # drawing it takes longer than a step
    case = CASES[source]
    root = tmp_path / "raw"
    shards = tmp_path / "shards" / source
    case.write(root)
    arguments = ["--source", source, "--root", root, "--workers", 1, "--max-bad", 0.5, *case.options]
    assert call("shard", *arguments, "--out", tmp_path / "shards") == 0
    manifest = Manifest.read(shards)
    assert (manifest.samples, manifest.left_out) == (case.samples, case.left_out)
    assert manifest.inputs == case.samples + sum(case.left_out.values())
    assert call("verify-shard", shards, "--against", root, "--workers", 1) == 0
    assert call("preview", shards, "--out", tmp_path / "page") == 0
    page = html.unescape((tmp_path / "page/index.html").read_text("utf-8"))
    assert [text for text in case.texts if f": {text}</li>" not in page and f"{text}</d" not in page] == []
    assert page.count("<img") == len([*(tmp_path / "page").glob("*.png")]) == case.samples - page.count("text alone")
    assert losses(shards, tmp_path / "run", case.objective or ("segment" if case.texts else "dual"))
    without = f"samples left out, {case.without_text} without an object with a text"
    assert (without in caplog.text) == (case.without_text > 0)


@pytest.mark.slow
def test_the_dual_objective_on_videos_whose_first_frame_lacks_objects(tmp_path):
    CASES["mevis"].write(tmp_path / "raw")
    assert call("shard", "--source", "mevis", "--root", tmp_path / "raw", "--out", tmp_path) == 0
    assert losses(tmp_path / "mevis", tmp_path / "run", "dual")


def losses(shards: Path, out: Path, objective: str) -> list[float]:
    """Return the losses of two steps; all are finite."""
    arguments = [f"data.shards=[{shards}]", f"output_dir={out}", f"objective={objective}", "steps=2", "batch_size=1"]
    train.main([*arguments, "accumulation=1", "data.holdout=0", *SMALL])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(value) for record in records for value in record.values())
    return [record["loss"] for record in records]
