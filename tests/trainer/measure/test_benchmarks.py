"""Published benchmarks in a training: measured as the verb benchmark measures, without a trace in the training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation.published.in_training import Opened
from evaluation.published.predictions import read_predictions
from evaluation.published.run import Asking, benchmark
from inference.predictor import Predictor
from shards.errors import UserError
from tests.evaluation.published.conftest import root  # noqa: F401 (a fixture)
from tests.fresh_accelerate import reset_accelerate
from tests.models import composed_once  # noqa: F401 (a fixture)
from tests.trainer.runs import SMALL, assert_same, environment_of, finish, records
from trainer.checkpoints.resume import Beginning
from trainer.config import load_config
from trainer.measure.benchmarks import _undisturbed
from trainer.measure.curves import benchmark_charts, draw
from trainer.model.sa2va import build
from trainer.released.loaded import LoadedModel
from trainer.train import main

TWO_ITEMS = 2


def asked(data: Path, **more: object) -> str:
    values = {"on": "refcoco", "root": str(data), "limit": TWO_ITEMS, "tiles": 1, **more}
    return "eval.benchmarks=[" + json.dumps(values) + "]"


@pytest.mark.slow
def test_a_training_with_benchmarks_is_the_same_training(sav_set, root, tmp_path):  # noqa: F811
    """Bit for bit, with dropout; its measures are those of the verb, also where two processes share the items."""
    arguments = [f"data.shards=[{sav_set}]", "steps=2", "batch_size=1", "data.holdout=0", "eval.every=2"]
    arguments += ["checkpoint.every=1", "eval.answer_tokens=2", *SMALL, "lora.dropout=0.3"]
    main([*arguments, f"output_dir={tmp_path / 'without'}", "accumulation=2"])
    reset_accelerate()
    main([*arguments, f"output_dir={tmp_path / 'with'}", "accumulation=2", asked(root)])
    assert_same(tmp_path / "with", tmp_path / "without")
    of_run = records(tmp_path / "with")
    assert [(r["step"], "loss" in r) for r in of_run] == [(0, False), (1, True), (2, True), (2, False)]
    folder = tmp_path / "with" / "benchmarks"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000", "step-000002"]

    last = folder / "step-000002" / "refcoco-val"
    asking = Asking(str(tmp_path / "with"), tiles=1, max_new_tokens=2, device="cpu")
    assert len([*benchmark(["refcoco"], root, tmp_path / "verb", asking=asking, limit=TWO_ITEMS)]) == 1
    verb = tmp_path / "verb" / "refcoco-val"
    one, other = (read_predictions(place / "predictions.jsonl").of_item for place in (last, verb))
    assert len(one) == TWO_ITEMS and {k: p.answer for k, p in one.items()} == {k: p.answer for k, p in other.items()}
    measures = json.loads((verb / "results.json").read_text())["measures"]
    values = {k.removeprefix("benchmark/refcoco-val/"): v for k, v in of_run[-1].items() if k != "step"}
    assert values == pytest.approx(measures, abs=1e-3) and "cIoU" in values  # adapters are merged in the verb's model
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("benchmark/refcoco-val/gIoU")] == [0, 2]
    assert "Benchmark refcoco-val" in (tmp_path / "with" / "report.html").read_text()

    shared = [*arguments, f"output_dir={tmp_path / 'two'}", "accumulation=1", "steps=1", asked(root)]
    said = finish(shared, tmp_path / "log", 2)
    assert said.count("benchmarks | refcoco-val/cIoU") == 2  # before the first step and after the last
    first = read_predictions(tmp_path / "two/benchmarks/step-000000/refcoco-val/predictions.jsonl")
    alone = read_predictions(folder / "step-000000/refcoco-val/predictions.jsonl")
    assert first.repeated == 0
    assert {k: p.answer for k, p in first.of_item.items()} == {k: p.answer for k, p in alone.of_item.items()}


def test_random_states_and_the_weights_of_sam_2_are_put_back():
    loop = SimpleNamespace(model=build("tiny").to(torch.bfloat16))
    before = copy.deepcopy(loop.model.state_dict())
    tensors = {name: tensor.data_ptr() for name, tensor in loop.model.state_dict().items()}
    state = torch.get_rng_state()
    with _undisturbed(loop, SimpleNamespace(device=torch.device("cpu"))):
        Predictor(LoadedModel(loop.model))
        assert next(loop.model.grounding_encoder.parameters()).dtype == torch.float32
        torch.rand(3)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in loop.model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
        assert tensor.data_ptr() == tensors[name]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"on": "refcoc"}, r"eval\.benchmarks\[0\]\.on: no such benchmark; met refcoc; wanted refcoco or "),
        ({"split": "train"}, r"eval\.benchmarks\[0\]: refcoco: no such split; met train; wanted val or testA"),
        ({"root": "/nowhere"}, r"eval\.benchmarks\[0\]: /nowhere.*no such file"),
        ({"on": "mevis", "split": "test"}, r"eval\.benchmarks\[0\]\.split: the truth of this split is not public"),
        ({"on": "dlc-bench"}, r"eval\.benchmarks\[0\]\.on: a judge is not asked during a training; met dlc-bench"),
        ({"tiles": 13}, r"eval\.benchmarks\[0\]\.tiles: out of range"),
    ],
)
def test_a_mistake_is_found_before_anything_else_is_read(root, tmp_path, change, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        main(["data.shards=[/none]", f"output_dir={tmp_path}", *SMALL, asked(root, **change)])
    assert not (tmp_path / "config.yaml").exists()


def test_a_benchmark_without_a_measure_ends_the_run(root, tmp_path, monkeypatch):  # noqa: F811
    def measure(found, folder, *_):
        folder.mkdir()
        (folder / "results.json").write_text('{"measures": {"METEOR": null}, "notes": ["METEOR needs Java"]}')

    monkeypatch.setattr("evaluation.published.in_training.measure", measure)
    opened = Opened(load_config(["data.shards=[/none]", asked(root)]).eval.benchmarks, 2)
    with pytest.raises(UserError, match="refcoco-val: nothing is measured; met METEOR needs Java"):
        opened.measure(tmp_path)
    opened.close()


@pytest.mark.slow
def test_sharded_parameters_are_whole_for_the_benchmarks(sav_set, root, tmp_path):  # noqa: F811
    """The two processes answer different numbers of items, as one process does, before and after the only step."""
    arguments = [f"data.shards=[{sav_set}]", "steps=1", "batch_size=1", "data.holdout=0", "eval.every=1"]
    arguments += ["checkpoint.every=1", "eval.answer_tokens=2", *SMALL, "mixed_precision=bf16", "model.dtype=bfloat16"]
    main([*arguments, f"output_dir={tmp_path / 'one'}", "accumulation=2", asked(root, limit=3)])
    sharded = {"processes": 2, "environment": environment_of("fsdp2.yaml")}
    for name, more in (("with", [asked(root, limit=3)]), ("without", [])):
        finish([*arguments, f"output_dir={tmp_path / name}", "accumulation=1", *more], tmp_path / "log", **sharded)
    assert "sharded parameters (FSDP2)" in (tmp_path / "log").read_text()
    assert_same(tmp_path / "with", tmp_path / "without")
    for step in ("000000", "000001"):
        place = f"benchmarks/step-{step}/refcoco-val/predictions.jsonl"
        one, two = (read_predictions(tmp_path / name / place) for name in ("one", "with"))
        assert len(two.of_item) == 3 and two.repeated == 0
        assert {k: p.answer for k, p in two.of_item.items()} == {k: p.answer for k, p in one.of_item.items()}


def test_a_run_that_goes_on_measures_no_step_twice():
    """Nor does it take benchmarks for an evaluation of held-out samples, or the other way round."""
    known = ({"step": 4, "benchmark/refcoco-val/cIoU": 0.5}, {"step": 8, "held_out/iou": 0.5}, {"step": 8, "loss": 1.0})
    for step, expected in ((4, (True, False)), (8, (False, True)), (6, (False, False))):
        begun = Beginning(state=SimpleNamespace(step=step), records=known)
        assert (begun.benchmarked, begun.evaluated) == expected


def test_charts_of_benchmarks_have_a_colour_for_each_measure():
    values = {f"benchmark/gcg-val/m{n}": n / 10 for n in range(8)}
    values |= {f"benchmark/refcoco-val/{name}": 0.3 for name in ("cIoU", "P@0.5", "P@0.9")}
    of_run = [{"step": 0, **values}, {"step": 5, "loss": 1.0}, {"step": 5, **values}]
    drawn = draw(benchmark_charts(of_run), of_run)
    shown = [(chart.title, [name for _, name in chart.legend]) for chart in drawn]
    assert shown == [
        ("Benchmark gcg-val", [f"m{n}" for n in range(6)]),
        ("Benchmark gcg-val", ["m6", "m7"]),
        ("Benchmark refcoco-val", []),
        ("Benchmark refcoco-val, precision at an IoU", ["P@0.5", "P@0.9"]),
    ]
