"""The registry: each objective is one file and one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from evaluation.conversations import ConversationReader
from shards.errors import UserError
from shards.reader import ShardSet
from tests.batches import make_loader
from trainer.config import Config, load_config
from trainer.conversations.options import ConversationOptions
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
    assert "class Describe(ConversationObjective" in source
    (tmp_path / "tell.py").write_text(source.replace("class Describe", "class Tell"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OBJECTIVES, "tell", "tell:Tell")

    assert load_config(["objective=tell"]).objective == "tell"
    assert [*load_config(["mix={tell: {}, segment: {}}"]).objectives()] == ["tell", "segment"]
    tell = load_objective("tell")
    assert tell.__module__ == "tell"
    loop = make_loop()
    options = {"batch_size": 2, "seed": 0, "threads": 0, "need": tell.needs}
    options |= {"conversations": ConversationOptions(), "kind": tell.conversation_kind, "prompts": loop.model.prompts}
    batch = next(make_loader([unequal_set], fields=tell.training_fields, **options).epoch(0))
    result = loop(batch, "tell")
    assert result["loss"].item() == pytest.approx(loop(batch, "describe")["loss"].item(), rel=1e-4)
    result["loss"].backward()
    assert loop.model.mlp1[1].weight.grad.any()
    assert loop.judge(batch, "tell").captions == loop.judge(batch, "describe").captions

    config.mixed_precision = "no"
    options |= {"part": "holdout", "holdout": 0.5, "holdout_by": "sample", "limit": 2}
    held_out = make_loader([unequal_set], fields=tell.panel_fields(), **options)
    values, panels = evaluate(Accelerator(cpu=True), loop, held_out, "tell", config)
    assert "caption" in values and "mask_loss" not in values and len(panels) == 2 and panels[0].regions

    shards = ShardSet(unequal_set)
    reader = ConversationReader(shards, tell.conversation_kind, loop.model.prompts, 4, 1, "refusal")
    for _, batches in reader.read([[(shards, 0), (shards, 1)]]):
        assert all(len(loop.judge(asked, "tell").captions) == len(asked.rows) > 0 for asked, _ in batches)
