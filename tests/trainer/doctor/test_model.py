"""The model before a run: memory, disk, and weights that do not fit."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from shards.recipe import RECIPES
from tests.trainer.doctor.found import found
from trainer.model.sa2va import build
from trainer.released.folder import save_model
from trainer.released.loaded import ModelInfo


def test_memory_and_disk(good: list[str], monkeypatch: pytest.MonkeyPatch):
    little = namedtuple("Memory", "available")(10**6)
    monkeypatch.setattr("trainer.doctor.model.psutil.virtual_memory", lambda: little)
    full = namedtuple("Usage", "free")(10**8)
    monkeypatch.setattr("trainer.doctor.model.shutil.disk_usage", lambda path: full)
    failed = dict(found(good))
    assert failed.keys() == {"memory", "disk"}
    assert "model.dtype=bfloat16" in failed["memory"] and "1 MB of memory free" in failed["memory"]
    assert "4 checkpoints of" in failed["disk"] and "100 MB free; make room" in failed["disk"]


def test_weights_that_do_not_fit_are_found_in_their_headers(good: list[str], tmp_path: Path):
    save_model(build("tiny"), tmp_path / "released")
    file = tmp_path / "released/model.safetensors"
    tensors = load_file(file)
    tensors.pop("mlp1.0.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    (failed,) = found([*good, f"model.path={tmp_path / 'released'}"])
    assert failed[0] == "model" and "1 missing: mlp1.0.weight" in failed[1]


def test_tiles_of_sa2vas_own_training_are_said(good: list[str], tmp_path: Path):
    save_model(build("tiny"), tmp_path / "released")
    save_model(build("tiny"), tmp_path / "ours", info=ModelInfo(recipe=RECIPES["default"]))
    (warning,) = found([*good, f"model.path={tmp_path / 'released'}"], "warn")
    assert warning[0] == "model" and "up to 12 tiles" in warning[1] and "the one view" in warning[1]
    assert not found([*good, f"model.path={tmp_path / 'ours'}"], "warn")
