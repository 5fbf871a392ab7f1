"""An evaluation takes the same held-out samples on any number of processes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator

from tests.batches import make_loader
from tests.conversations import conversation_batch
from tests.joined import Joined
from tests.trainer.conftest import build_step
from tests.trainer.runs import environment_of
from trainer.config import Config, EvalConfig, LoraConfig
from trainer.data.batch import Batch, PairBatch
from trainer.data.loader import Loader
from trainer.measure.evaluation import evaluate
from trainer.objectives import load_objective
from trainer.objectives.conversation_judging import judge_conversations
from trainer.optimizer import make_optimizer
from trainer.strategy import lay_out, make_accelerator

SAMPLES = 5
"""Two batches of two and one of one: with two processes one of them has padding."""


def load(folder: str | Path, rank: int = 0, world_size: int = 1):
    reverse = load_objective("reverse")
    options = {"batch_size": 2, "seed": 0, "threads": 0, "objects_per_sample": 2, "need": reverse.needs}
    held_out = {"part": "holdout", "holdout": 1.0, "limit": SAMPLES, "rank": rank, "world_size": world_size}
    return make_loader([folder], fields=reverse.panel_fields(), **options, **held_out)


def measure(folder: str | Path) -> tuple[dict[str, float], int]:
    config = Config(eval=EvalConfig(samples=SAMPLES, show=3), batch_size=2, mixed_precision="no")
    config.lora = LoraConfig(r=4, alpha=8, dropout=0.0)
    accelerator = Accelerator(cpu=True)
    loader = load(folder, accelerator.process_index, accelerator.num_processes)
    means, panels = evaluate(accelerator, build_step(config), loader, "reverse", config)
    return means, len(panels)


def save_means(folder: str, out: str) -> None:
    means, panels = measure(folder)
    Path(out, f"{Accelerator(cpu=True).process_index}.json").write_text(json.dumps([means, panels]))


@pytest.mark.slow
def test_one_and_two_processes_measure_the_same(unequal_set: Path, tmp_path: Path):
    joined = Joined(2, save_means, str(unequal_set), str(tmp_path), log=tmp_path / "said")
    alone, panels = measure(unequal_set)
    assert joined.wait() == [0, 0], (tmp_path / "said").read_text()[-2000:]
    for rank, shown in ((0, panels), (1, 0)):
        means, count = json.loads((tmp_path / f"{rank}.json").read_text())
        assert means == pytest.approx(alone, rel=1e-5) and count == shown
    assert panels == 3 and {"iou", "mask_loss", "ciou"} <= alone.keys()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_get_equally_many_batches_and_each_sample_counts_once(unequal_set: Path, world_size: int):
    def kept(ranks: Sequence[int]) -> list[list[str]]:
        epochs = [[*load(unequal_set, rank, world_size).epoch(0)] for rank in ranks]
        assert len({len(batches) for batches in epochs}) == 1
        return sorted(batch.keys for batches in epochs for batch in batches if not batch.is_padding)

    alone = [batch.keys for batch in load(unequal_set).epoch(0)]
    assert list(map(len, alone)) == [2, 2, 1]
    assert kept(range(world_size)) == sorted(alone)


class Batches:
    """A loader of batches that are there."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def epoch(self, number: int) -> Iterator[Batch]:
        yield from self.batches


def test_conversations_have_means_by_kind_and_padding_is_not_counted(batch: PairBatch, monkeypatch: pytest.MonkeyPatch):
    """Means over all masks and rows, not means of means of batches."""
    config = Config(eval=EvalConfig(show=4), mixed_precision="no", max_caption_tokens=2)
    config.lora = LoraConfig(r=4, alpha=8, dropout=0.0)
    step = build_step(config)
    judge = torch.no_grad()(partial(judge_conversations, step.eval().passes))
    monkeypatch.setattr(step, "judge", lambda part, objective: judge(part))
    prompts = step.model.prompts
    parts = [conversation_batch(batch, prompts, chosen) for chosen in ((0, 1, 3), (2, 4, 6), (0, 5))]
    padding = replace(parts[0], is_padding=True)
    loader = cast(Loader, Batches([*parts, padding]))
    means, panels = evaluate(Accelerator(cpu=True), step, loader, "reverse", config)
    judged = [judge(part) for part in parts]

    def mean(name: str, *kinds: str) -> float:
        found = [
            float(value)
            for part, one in zip(parts, judged, strict=True)
            for value, row in zip(one.values[name], one.rows[name], strict=True)
            if not math.isnan(value) and (not kinds or part.conversations[row].kind in kinds)
        ]
        return sum(found) / len(found)

    for name in ("iou", "bce", "lang", "video_iou", "seg_asked", "seg_unasked", "empty_right"):
        assert means[name] == pytest.approx(mean(name), rel=1e-5), name
    assert means["mask_loss"] == pytest.approx(mean("bce") + mean("dice_loss"), rel=1e-5)
    for kind in ("referring", "grounded_caption"):
        assert means[f"{kind}/iou"] == pytest.approx(mean("iou", kind), rel=1e-5)
    assert means["describe/caption"] == means["caption"] and "describe/iou" not in means and "chat/iou" not in means
    assert means["refused_right"] == mean("refused_right") and means["chat/lang"] == pytest.approx(mean("lang", "chat"))
    shown = [(panel.kind, len(panel.frames) > 1) for panel in panels]
    assert shown == [("referring", True), ("chat", False), ("referring", False), ("regions", False)]


SPLIT = (((0, 1, 3), ()), ((2,), (4, 6)))
"""Conversations by process and batch. In each batch one process lacks pictures, masks or rows."""


def measure_conversations(accelerator: Accelerator, pair: PairBatch, chosen: Sequence[Sequence[int]]):
    config = Config(objective="converse", eval=EvalConfig(show=1, answer_tokens=3), mixed_precision="no")
    config.lora = LoraConfig(r=4, alpha=8, dropout=0.0)
    step = build_step(config)
    batches = [conversation_batch(pair, step.model.prompts, tuple(numbers)) for numbers in chosen]
    lay_out(accelerator, step, make_optimizer(step.model, config))
    return evaluate(accelerator, step, cast(Loader, Batches(batches)), "converse", config)[0]


def save_conversation_means(folder: str) -> None:
    accelerator = make_accelerator(Config(mixed_precision="no"))
    pair = torch.load(f"{folder}/pair.pt", weights_only=False)
    means = measure_conversations(accelerator, pair, SPLIT[accelerator.process_index])
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps(means))


@pytest.mark.slow
def test_two_processes_measure_conversations_as_one_does(batch: PairBatch, tmp_path: Path):
    """Their layers are sharded: none waits for the other."""
    pair = replace(batch, meta=[{}, {}])
    torch.save(pair, tmp_path / "pair.pt")
    said = tmp_path / "said"
    joined = Joined(2, save_conversation_means, str(tmp_path), log=said, environment=environment_of("fsdp2.yaml"))
    every = [numbers for of_process in SPLIT for numbers in of_process]
    alone = measure_conversations(Accelerator(cpu=True), pair, every)
    assert joined.wait(200) == [0, 0], said.read_text()[-3000:]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(alone, rel=1e-4)
    assert {"referring/iou", "chat/seg_unasked", "refused_right", "video_iou"} <= alone.keys()
