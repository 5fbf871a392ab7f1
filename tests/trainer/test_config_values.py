"""The file, the command line and the environment, before their values have types."""

import os
from pathlib import Path

import pytest

from shards.errors import UserError
from trainer.config import load_config


def test_paths_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs" / "a=b").mkdir(parents=True)
    (tmp_path / "runs" / "a=b" / "config.yaml").write_text("steps: 700\n")
    (tmp_path / "lr=1.yaml").write_text("steps: 800\n")
    (tmp_path / "a=b.yaml").write_text("steps: 900\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(["runs/a=b/config.yaml"]).steps == 700
    assert load_config([f"{tmp_path}/runs/a=b/config.yaml"]).steps == 700
    assert load_config(["a=b.yaml"]).steps == 900
    assert load_config(["./lr=1.yaml"]).steps == 800
    with pytest.raises(UserError, match=r"^lr: "):
        load_config(["lr=1.yaml"])  # begins with the name of a key
    assert load_config(["output_dir=runs/a=b"]).output_dir == "runs/a=b"
    assert load_config(["data.shards=[shards/a=b]"]).data.shards == ["shards/a=b"]


def test_values_from_the_environment_have_the_type_of_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variables = {"STEPS": "700", "LR": "1e-4", "COMPILE": "true", "SETS": "[shards/a, shards/b]", "ONE": "shards/a"}
    variables |= {"SOURCES": "{sav: 2}", "NOTHING": "null"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.yaml"
    file.write_text(
        "steps: ${oc.env:STEPS}\nlr: ${oc.env:LR}\ncompile: ${oc.env:COMPILE}\nwarmup_steps: ${accumulation}\n"
        "data: {shards: '${oc.env:SETS}', sources: '${oc.env:SOURCES}'}\nmodel: {path: '${oc.env:NOTHING}'}\n"
        "output_dir: runs/${oc.env:STEPS}\n"
    )
    config = load_config([str(file), "data.holdout=${oc.env:NOT_SET_ANYWHERE,0.1}"])
    assert (config.steps, config.lr, config.compile, config.warmup_steps) == (700, 1e-4, True, 2)
    assert (config.data.shards, config.data.sources) == (["shards/a", "shards/b"], {"sav": 2})
    assert (config.model.path, config.output_dir, config.data.holdout) == (None, "runs/700", 0.1)
    assert load_config(["data.shards=['${oc.env:ONE}']"]).data.shards == ["shards/a"]
    with pytest.raises(UserError, match=r"^data.shards: wrong type; met 'shards/a'"):
        load_config(["data.shards=${oc.env:ONE}"])


def test_text_is_kept_as_written():
    assert load_config(["output_dir=2024"]).output_dir == "2024"
    assert load_config(["output_dir=007"]).output_dir == "007"
    assert load_config(["output_dir=1e3"]).output_dir == "1e3"
    assert load_config(["data.shards=[1:30, yes]"]).data.shards == ["1:30", "yes"]


def test_resolvable_interpolation_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUN_NAME", "mine")
    assert load_config(["output_dir=runs/${oc.env:RUN_NAME}"]).output_dir == "runs/mine"
    monkeypatch.setenv("RUN_NAME", "")
    with pytest.raises(UserError, match=r"model.path: empty value"):
        load_config(["model.path=${oc.env:RUN_NAME}"])
    assert load_config(["model.path=null"]).model.path is None


def test_a_configuration_is_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "run.yaml")
    for path, message in ((tmp_path / "run.yaml", "a named pipe"), ("/dev/zero", "a device"), (tmp_path, "directory")):
        with pytest.raises(UserError, match=message):
            load_config([str(path)])
