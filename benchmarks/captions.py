"""Time of the teacher's captions: shared pictures and rows that leave, against whole rows that stay to the end.

    python -m benchmarks.captions [--rounds 9] [--layers 2]

Eight regions of two pictures are described, by captions of 9 to 40 tokens, whatever the logits are. On a GPU where
there is one (bfloat16 autocast, by the clock), else on the CPU (float32, by processor time). The models are the preset
`tiny`, and one with the width of `sa2va-1b` and `--layers` of its 24 layers. Both ways take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.conversations import build
from trainer.model.captioner import read_pictures
from trainer.model.generation import generate
from trainer.model.rows import TokenRow
from trainer.model.sa2va import Sa2VA
from trainer.modes import autocast

LENGTHS = (9, 40, 12, 18, 27, 15, 33, 22)
"""Tokens of the captions, with the end token."""
PICTURES = (0, 0, 0, 0, 1, 1, 1, 1)
CELLS = (3, 40, 12, 90, 7, 25, 60, 16)
"""Cells of the regions."""
_WARM_UP = 2
Question = tuple[Sequence[TokenRow], Tensor, Tensor, Tensor]


def question(model: Sa2VA, device: torch.device) -> Question:
    """Return rows, visual tokens, pictures and regions, as `Captioner.forward` takes them."""
    draw = torch.Generator().manual_seed(0)
    regions = torch.zeros(len(CELLS), 1, 256, dtype=torch.bool)
    for number, cells in enumerate(CELLS):
        regions[number, 0, :cells] = True
    visual_tokens = torch.randn(2, 256, model.mlp1[0].normalized_shape[0], generator=draw)
    rows = [model.prompts.describe(f"region {n}", [cells]) for n, cells in enumerate(CELLS)]
    return rows, visual_tokens.to(device), torch.tensor(PICTURES).to(device), regions.view(-1, 1, 16, 16).to(device)


@torch.no_grad()
def whole_rows(model: Sa2VA, asked: Question, script: Tensor) -> Tensor:
    """Generate with the whole question of each row, and all rows until the last one has ended: (M, T) tokens."""
    rows = model.prompts.padded(asked[0], model.device, left=True)
    cache = DynamicCache(config=model.language_model.config)
    attention, positions = rows.mask, rows.positions
    embeddings = model.embed_rows(rows, *asked[1:])
    ids: list[Tensor] = []
    running = torch.ones(len(script), dtype=torch.bool, device=model.device)
    while True:
        state = model.run_language_model(embeddings, attention, positions, cache)[:, -1]
        model.language_model.lm_head(state).float().argmax(-1)
        ids.append(torch.where(running, script[:, len(ids)], model.prompts.pad))
        running = running & ~model.prompts.ended(ids[-1][:, None])
        if not running.any():
            return torch.stack(ids, 1)
        embeddings = model.embedding(ids[-1])[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], 1)
        positions = positions[:, -1:] + 1


@torch.no_grad()
def shared_pictures(model: Sa2VA, asked: Question, script: Tensor) -> Tensor:
    """Generate as `Captioner` does: (M, T) tokens."""

    def pick(logits: Tensor, step: int, rows: Tensor) -> Tensor:
        logits.argmax(-1)
        return script[rows, step]

    rest, embeddings, cache = read_pictures(model, *asked)
    return generate(model, rest, embeddings, max(LENGTHS), pick, model.prompts.ended, cache=cache).ids


def compare(model: Sa2VA, rounds: int, device: torch.device) -> str:
    """Return the times of both ways and their ratio."""
    asked = question(model, device)
    end = model.prompts.end_ids[0]
    script = torch.tensor([[65] * (n - 1) + [end] * (max(LENGTHS) - n + 1) for n in LENGTHS], device=device)
    ways: dict[str, Callable[..., Tensor]] = {"whole rows": whole_rows, "shared pictures": shared_pictures}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(rounds + _WARM_UP):
        for name, way in ways.items():
            started = clock()
            with autocast(device, "bf16" if device.type == "cuda" else "no"):
                found[name] = way(model, asked, script)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(clock() - started)
    assert torch.equal(found["whole rows"], found["shared pictures"])
    before, after = (times[_WARM_UP:] for times in taken.values())
    ratios = sorted(a / b for a, b in zip(after, before, strict=True))
    times = " | ".join(f"{statistics.median(each) * 1e3:,.0f} ms" for each in (before, after))
    return f"{times} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Captions of regions of the same pictures.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| | whole rows | shared pictures, rows leave | ratio |\n|---|---|---|---|")
    for name, layers in (("tiny", None), (f"sa2va-1b, {arguments.layers} layers", arguments.layers)):
        torch.manual_seed(0)
        model = build(layers, 32).eval().requires_grad_(False).to(device)
        print(f"| {name} | {compare(model, arguments.rounds, device)} |", flush=True)


if __name__ == "__main__":
    main()
