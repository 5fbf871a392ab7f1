"""The registry: each objective is one file and one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from evaluation.items import make_batches, read_groups
from shards.errors import UserError
from shards.reader import ShardSet
from tests.batches import make_loader
from trainer.config import Config, load_config
from trainer.measure.evaluation import evaluate
from trainer.objectives import OBJECTIVES, load_objective
from trainer.objectives.objective import Objective

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "trainer" / "objectives"


def test_every_registered_name_is_a_class_of_its_own_file():
    for name, path in OBJECTIVES.items():
        objective = load_objective(name)
        assert issubclass(objective, Objective)
        assert path == f"{objective.__module__}:{objective.__name__}" and objective.__module__.endswith(f".{name}")


def test_an_unknown_objective_is_an_error_that_lists_the_known_ones(make_loop, batch):
    message = "no such objective; met sagment; wanted dual or segment or describe or reverse"
    for ask in (load_objective, lambda name: make_loop()(batch, name), lambda name: make_loop().judge(batch, name)):
        with pytest.raises(UserError, match=message):
            ask("sagment")


def test_the_names_are_known_without_torch():
    code = "import sys, trainer.objectives; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_an_objective_is_added_by_one_file_and_one_line(
    config: Config, make_loop, unequal_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A copy of describe under another name: accepted by the configuration, trained a step, judged, evaluated."""
    source = (FOLDER / "describe.py").read_text("utf-8")
    assert "class Describe(Objective" in source
    (tmp_path / "tell.py").write_text(source.replace("class Describe", "class Tell"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OBJECTIVES, "tell", "tell:Tell")

    assert load_config(["objective=tell"]).objective == "tell"
    assert [*load_config(["mix={tell: {}, segment: {}}"]).objectives()] == ["tell", "segment"]
    tell = load_objective("tell")
    assert tell.__module__ == "tell"
    options = {"batch_size": 2, "seed": 0, "threads": 0, "need": tell.needs}
    batch = next(make_loader([unequal_set], fields=tell.training_fields, **options).epoch(0))
    loop = make_loop()
    result = loop(batch, "tell")
    assert result["loss"].item() == pytest.approx(loop(batch, "describe")["loss"].item(), rel=1e-4)
    result["loss"].backward()
    assert loop.model.mlp1[1].weight.grad.any()
    assert loop.judge(batch, "tell").captions == loop.judge(batch, "describe").captions

    config.mixed_precision = "no"
    options |= {"part": "holdout", "holdout": 0.5, "holdout_by": "sample", "limit": 2}
    held_out = make_loader([unequal_set], fields=tell.panel_fields(), **options)
    values, panels = evaluate(Accelerator(cpu=True), loop, held_out, "tell", config)
    assert values.keys() == {"caption"} and len(panels) == 2 and panels[0].prompt is not None

    shards = ShardSet(unequal_set)
    (group,) = read_groups([[(shards, 0), (shards, 1)]], "tell")
    assert all(loop.judge(item, "tell").captions for item, _ in make_batches(group, "tell", 4))
