"""A run without faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.doctor.found import GOOD
from trainer.config import Config
from trainer.doctor.footprint import Footprint, measure_footprint

_FOOTPRINTS: dict[str, Footprint] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """The first and the last sample of each set are read, and each model is built once."""

    def remembered(config: Config) -> Footprint:
        key = repr((config.model, config.trainable, config.lora))
        if key not in _FOOTPRINTS:
            _FOOTPRINTS[key] = measure_footprint(config)
        return _FOOTPRINTS[key]

    monkeypatch.setattr("trainer.doctor.data.PROBED", 2)
    monkeypatch.setattr("trainer.doctor.footprint.measure_footprint", remembered)


@pytest.fixture
def good(sav_set: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run without faults."""
    return [*GOOD, f"data.shards=[{sav_set}]", f"output_dir={tmp_path / 'run'}"]
