"""A tiny model and batches of real shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.request import make_request
from pipeline.run import run
from pipeline.sa2va_training import for_each_part
from tests.batches import make_loader
from tests.models import composed_once  # noqa: F401 (a fixture)
from tests.pipeline.sources.test_folder import write as write_lines
from tests.pipeline.sources.test_folder import write_pictures
from trainer.config import Config
from trainer.data.batch import Frame, PairBatch
from trainer.model.sa2va import Sa2VA, build
from trainer.model.trainable import set_trainable
from trainer.objectives.step import Step

OBJECTS = (5, 6, 1, 4)
"""Numbers of objects of the samples of `unequal_set`, repeated in this order."""
FIELDS = tuple(f"{name}{k}" for k in (1, 2) for name in ("pixel_values", "g_pixel_values", "prompt_masks", "masks"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def batch(sav_set: Path) -> PairBatch:
    """Two pairs of real photographs; every object has a text. Not to be changed."""
    loader = make_loader([sav_set], fields=FIELDS, batch_size=2, seed=0)
    steps: Iterator[PairBatch] = loader.epoch(0)
    taken = next(steps)
    first, second = (Frame(**{n: t.clone() for n, t in frame.tensors().items()}) for frame in taken.frames)
    steps.close()  # type: ignore[attr-defined]
    return replace(taken, frames=(first, second), texts=[["The Left eye."], ["a helmet", "the white helmet"]])


@pytest.fixture(scope="session")
def unequal_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pairs of photographs with 5, 6, 1, 4, ... objects; both frames show all, each has texts. Not to be changed."""
    root = write_pictures(tmp_path_factory.mktemp("unequal"))
    lines = []
    for number in range(12):
        corners = [(3 * k + number, 2 * k + number) for k in range(OBJECTS[number % 4])]
        masks = [[[x, y, x + 40, y, x + 30, y + 30]] for x, y in corners]
        objects = [{"masks": [mask, mask], "texts": ["a cup", f"cup {n}"]} for n, mask in enumerate(masks)]
        lines.append({"id": f"n{number}", "frames": ["a.jpg", "b.png"], "objects": objects})
    write_lines(root, *lines)
    out = root / "shards" / "folder"
    run(make_request("folder", root, shard_bytes=10**7), out, 1, 0.0)
    return out


@pytest.fixture
def config() -> Config:
    config = Config(max_caption_tokens=5, num_points=512, gumbel_top_k=32, corrupt_ratio=0.5)
    config.lora.r = 4
    config.lora.alpha = 8
    config.lora.dropout = 0.0
    return config


def build_step(config: Config) -> Step:
    """A tiny step in training mode. Its adapters are random: at their start they would do nothing."""
    torch.manual_seed(0)
    model = build(config.model.preset)
    set_trainable(model, config.trainable, r=config.lora.r, alpha=config.lora.alpha, dropout=config.lora.dropout)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return Step(model, config).train()


@pytest.fixture
def make_loop(config: Config) -> Callable[..., Step]:
    return lambda settings=config: build_step(settings)


@pytest.fixture(scope="module")
def model() -> Sa2VA:
    """A tiny model in evaluation mode, without adapters. Not to be changed."""
    torch.manual_seed(0)
    return build("tiny").eval().requires_grad_(False)


@pytest.fixture(scope="session")
def mix_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets of all datasets of the published mix, each in its folder; videos of 3 frames. Not to be changed."""
    from tests.layouts import write_sa2va_training  # imports every source's tests

    root = tmp_path_factory.mktemp("mix")
    write_sa2va_training(root / "data")
    outcomes = for_each_part(
        root / "data",
        lambda request: run(request, root / "shards" / request.source.name, 1, 0.5),
        frames=3,
        codec="raw",
    )
    assert {outcome.state for outcome in outcomes} == {"written"}
    return root / "shards"
