"""An evaluation takes the same held-out samples on any number of processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.batches import make_loader
from tests.joined import Joined
from tests.trainer.conftest import build_step
from trainer.config import Config, EvalConfig, LoraConfig
from trainer.measure.evaluation import evaluate
from trainer.objectives import load_objective

SAMPLES = 5
"""Two batches of two and one of one: with two processes one of them has padding."""


def load(folder: str | Path, rank: int = 0, world_size: int = 1):
    segment = load_objective("segment")
    options = {"batch_size": 2, "seed": 0, "threads": 0, "objects_per_sample": 2, "need": segment.needs}
    held_out = {"part": "holdout", "holdout": 1.0, "limit": SAMPLES, "rank": rank, "world_size": world_size}
    return make_loader([folder], fields=segment.panel_fields(), **options, **held_out)


def measure(folder: str | Path) -> tuple[dict[str, float], int]:
    config = Config(eval=EvalConfig(samples=SAMPLES, show=3), batch_size=2, mixed_precision="no")
    config.lora = LoraConfig(r=4, alpha=8, dropout=0.0)
    accelerator = Accelerator(cpu=True)
    loader = load(folder, accelerator.process_index, accelerator.num_processes)
    means, panels = evaluate(accelerator, build_step(config), loader, "segment", config)
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
