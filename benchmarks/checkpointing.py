"""Cost of a checkpoint: steps beside which it is written in the background, and steps that wait for it.

    python -m benchmarks.checkpointing [--layers 10] [--steps 2] [--rounds 5] [--out DIR]

The model of benchmarks/step_memory.py, whose checkpoint has 500 MB with 10 layers, on a GPU where there is one. Some
steps without a checkpoint, with one that is waited for, and with one in the background take turns in one process. The
time of the last way ends when the checkpoint is on the disk, so nothing that it costs is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.step_memory import build, sample
from shards.recipe import RECIPES
from trainer.checkpoints.checkpoint import Parts, State, nbytes, write
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config
from trainer.model.trainable import set_trainable
from trainer.modes import autocast
from trainer.objectives.step import Step
from trainer.trained import Origin

_WAYS = ("no checkpoint", "waited for", "in the background")


def make(layers: int, config: Config, device: torch.device) -> Parts:
    torch.manual_seed(0)
    model = build(layers)
    set_trainable(model, config.trainable, **vars(config.lora))
    loop = Step(model.to(device), config).train()
    optimizer = torch.optim.AdamW([p for p in loop.parameters() if p.requires_grad], lr=1e-5)
    return Parts(loop, frozenset(), optimizer, LambdaLR(optimizer, lambda step: 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds that a checkpoint costs.")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for checkpoints; by default a temporary one")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "no"
    config = Config(max_caption_tokens=4, mixed_precision=precision)
    parts = make(arguments.layers, config, device)
    batch = sample()
    origin = Origin.of(config, 1, RECIPES["default"], [])
    number = 0

    def step() -> None:
        with autocast(device, config.mixed_precision):
            loss = parts.module(batch, "dual")["loss"]
        loss.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        parts.module.teacher.update()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def run(way: str, folder: RunFolder) -> tuple[float, float]:
        """Return seconds of all steps with their checkpoint, and those for which the first of them stood still."""
        nonlocal number
        number += 1
        started = time.perf_counter()
        if way != _WAYS[0]:
            background = way == _WAYS[2]
            tensors = parts.tensors(copy=background)
            state = State(number, {}, 1, None, {}, {}, [])
            save = partial(folder.save, number, nbytes(tensors), lambda at: write(at, tensors, state, origin, []))
            folder.writer.start(save) if background else save()
        stood = time.perf_counter() - started
        for _ in range(arguments.steps):
            step()
        folder.writer.wait()
        return time.perf_counter() - started, stood

    with tempfile.TemporaryDirectory(dir=arguments.out) as place, closing(RunFolder(Path(place), 1)) as folder:
        folder.open()
        for _ in range(2):
            step()
        size = nbytes(parts.tensors())
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
        for _ in range(arguments.rounds):
            for way in _WAYS:
                found[way].append(run(way, folder))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{name}; a checkpoint of {size / 1e6:.0f} MB, {arguments.steps} steps, {arguments.rounds} rounds in turn")
    plain = [total for total, _ in found[_WAYS[0]]]
    print(f"  {_WAYS[0]}: {statistics.median(plain) / arguments.steps:.2f} s a step")
    for way in _WAYS[1:]:
        costs = [(total - bare) * arguments.steps / bare for (total, _), bare in zip(found[way], plain, strict=True)]
        stood = [still * arguments.steps / bare for (_, still), bare in zip(found[way], plain, strict=True)]
        print(f"  {way}: the run stands still for {spread(stood)} of a step's time, and loses {spread(costs)} in all")


def spread(values: list[float]) -> str:
    """Return median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
