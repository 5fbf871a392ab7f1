"""What `compile` and `optimizer: adamw8bit` are worth: a step compiled against the step, 8-bit moments against AdamW's.

    python -m benchmarks.step_options [--layers 2] [--rounds 5]

On a GPU where there is one (bfloat16 autocast), else on the CPU (float32), with the model of benchmarks/step_memory.py.
Both ways of each option take turns in one process; the first rounds, which compile, are told apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.step_memory import build, sample
from trainer.config import Config
from trainer.model.compiled import compile_layers
from trainer.model.trainable import set_trainable
from trainer.modes import autocast
from trainer.objectives.step import Step
from trainer.optimizer import make_optimizer, to_stored

_WARM_UP = 2


def seconds(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> None:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + _WARM_UP):
        for name, run in ways.items():
            taken[name].append(seconds(run, device))
    plain, ours = [*ways][:2]
    reference, option = [times[_WARM_UP:] for times in taken.values()]
    for name, times in taken.items():
        kept = sorted(times[_WARM_UP:])
        first = times[0]
        low = kept[0] * 1e3
        median = statistics.median(kept) * 1e3
        high = kept[-1] * 1e3
        print(f"  {name}: {median:.0f} ms ({low:.0f} to {high:.0f}), the first {first:.1f} s")
    ratios = sorted(a / b for a, b in zip(reference, option, strict=True))
    print(f"  {plain} / {ours}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def make(layers: int, device: torch.device, config: Config) -> Step:
    torch.manual_seed(0)
    model = build(layers)
    set_trainable(model, config.trainable, **vars(config.lora))
    return Step(model.to(device), config).train()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of the options of a step.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "no"
    config = Config(max_caption_tokens=4, mixed_precision=precision)
    batch = sample()

    def step(loop: Step) -> None:
        with autocast(device, precision):
            loop(batch, "dual")["loss"].backward()

    loops = {"as written": make(arguments.layers, device, config), "compiled": make(arguments.layers, device, config)}
    compile_layers(loops["compiled"].model)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"forward and backward, {name}")
    compare({way: lambda loop=loop: step(loop) for way, loop in loops.items()}, arguments.rounds, device)

    loop = loops["as written"]
    options = {name: Config(optimizer=name) for name in ("adamw", "adamw8bit")}
    optimizers = {name: make_optimizer(loop.model, options[name]) for name in options}
    print("optimiser step")
    compare({name: optimizer.step for name, optimizer in optimizers.items()}, arguments.rounds, device)
    sizes = {
        name: sum(tensor.nbytes for of in optimizer.state.values() for tensor in to_stored(of).values())
        for name, optimizer in optimizers.items()
    }
    trains = sum(p.numel() for p in loop.parameters() if p.requires_grad)
    print(f"moments of {trains / 1e6:.1f} M parameters: ", end="")
    print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()), end="; ")
    print(f"adamw8bit / adamw: {sizes['adamw8bit'] / sizes['adamw']:.3f}")


if __name__ == "__main__":
    main()
