"""Versions and the device before a run."""

from __future__ import annotations

import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from trainer.config import load_config
from trainer.doctor import machine

REPOSITORY = Path(__file__).parents[3]


def test_versions(monkeypatch: pytest.MonkeyPatch):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = {*project["dependencies"], *extras["pipeline"], *extras["train"]}
    assert {name + versions for name, versions in machine.NEEDED.items()} <= requirements
    assert [finding.level for finding in machine.check_versions()] == ["ok"]
    real = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda n: "0.1.0" if n == "peft" else real(n))
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["numpy", "torch==2.1.0"])
    first, second = machine.check_versions()
    assert first.level == second.level == "fail"
    assert "peft 0.1.0, wanted >=0.19,<1" in first.text and "was built for torch ==2.1.0" in second.text


def test_a_gpu_without_bf16(monkeypatch: pytest.MonkeyPatch):
    old = namedtuple("Properties", "name total_memory major")("V100", 16 * 10**9, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: old)
    (finding,) = machine.check_device(load_config([]))
    assert finding.level == "fail" and "set mixed_precision=no" in finding.text
    (finding,) = machine.check_device(load_config(["mixed_precision=no"]))
    assert finding.level == "ok"
