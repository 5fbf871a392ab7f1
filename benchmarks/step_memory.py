"""Peak memory of a step of the dual loop: a teacher that shares every frozen tensor, against a second full model.

    python -m benchmarks.step_memory [--layers 8] [--steps 2]

Both in this run, each in a process of its own, on a GPU where there is one: the same model with random weights (a
language model of Qwen2's shape and 0.9 k width, tiny encoders), one sample, adapters of rank 128 and AdamW. The peak is
that of PyTorch's allocator on a GPU and of the resident set on the CPU, less what the process held before the model.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
from typing import Any

import torch

from shards.recipe import named_recipe
from trainer.config import Config
from trainer.data.batch import Frame, PairBatch
from trainer.model.architecture import PRESETS, Architecture
from trainer.model.captioner import Captioner
from trainer.model.generation import Answers
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import byte_tokenizer
from trainer.model.trainable import set_trainable
from trainer.objectives.step import Step

SHAPE = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864}
_VOCABULARY = 32_000


class SecondModel:
    """The moving average as it is often written: a copy of the whole model."""

    def __init__(self, student: Sa2VA, decay: float) -> None:
        self._student = student
        self._decay = decay
        self._copy = copy.deepcopy(student).requires_grad_(False).eval()
        self._captioner = Captioner(self._copy)

    @torch.no_grad()
    def update(self) -> None:
        for average, other in zip(self._copy.parameters(), self._student.parameters(), strict=True):
            average.lerp_(other, 1 - self._decay)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Answers:
        answers: Answers = self._captioner(*args, **kwargs)
        return answers


def build(layers: int) -> Sa2VA:
    tiny = PRESETS["tiny"]
    shape = {**SHAPE, "num_hidden_layers": layers, "vocab_size": _VOCABULARY}
    config = {**tiny.config, "llm_config": {**tiny.config["llm_config"], **shape}}
    architecture = Architecture(config, tiny.sam)
    return Sa2VA(architecture, Prompts(byte_tokenizer(), architecture.template, _VOCABULARY))


def sample() -> PairBatch:
    region = torch.zeros(1, 16, 16, dtype=torch.bool)
    region[:, 4:9, 4:9] = True
    mask = torch.zeros(1, 1024, 1024, dtype=torch.bool)
    mask[:, 200:600, 200:600] = True
    small = torch.randn(1, 3, 448, 448)
    large = torch.randint(0, 256, (1, 3, 1024, 1024), dtype=torch.uint8)
    return PairBatch(
        frames=(Frame(pixel_values=small, prompt_masks=region), Frame(small.clone(), large, masks=mask)),
        image_of_object=torch.tensor([0]),
        paired=torch.tensor([True]),
        keys=["one"],
        texts=[[]],
        objects=[0],
        recipe=named_recipe("default"),
        meta=[{}],
        frame_numbers=[(1, 2)],
        turns=[0],
        copies=[0],
    )


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, layers: int, steps: int) -> dict[str, float]:
    """Train some steps; bytes at the peak, and parameters."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    before = resident()
    model = build(layers)
    config = Config(max_caption_tokens=4)
    set_trainable(model, config.trainable, **vars(config.lora))
    loop = Step(model.to(device), config).train()
    if way == "second model":
        loop.teacher = SecondModel(model, config.ema_decay)  # type: ignore[assignment]
    trainable = [p for p in loop.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr)
    batch = sample()
    for _ in range(steps):
        loop(batch, "dual")["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        loop.teacher.update()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident() - before
    trains = sum(p.numel() for p in trainable)
    return {"peak": peak, "parameters": sum(p.numel() for p in model.parameters()), "trainable": trains}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a step, as a ratio.")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.layers, arguments.steps)))
        return
    found = {}
    for way in ("shared", "second model"):
        how = ["--layers", str(arguments.layers), "--steps", str(arguments.steps), "--way", way]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.step_memory", *how], check=True, capture_output=True, text=True
        )
        found[way] = json.loads(done.stdout.splitlines()[-1])
    ours = found["shared"]
    other = found["second model"]
    print(f"{ours['parameters'] / 1e6:.0f} M parameters, {ours['trainable'] / 1e6:.0f} M of them train; float32")
    for way, numbers in found.items():
        print(f"{way}: {numbers['peak'] / 2**20:,.0f} MiB at the peak of {arguments.steps} steps")
    saved = (other["peak"] - ours["peak"]) / 2**20
    print(f"ours / second model: {ours['peak'] / other['peak']:.2f} ({saved:,.0f} MiB less)")


if __name__ == "__main__":
    main()
