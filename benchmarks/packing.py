"""Tokens per second of the language model, forward and backward, with rows laid end to end against padded rows.

    python -m benchmarks.packing [--rounds 9] [--layers 2]

On a GPU where there is one (bfloat16 autocast, by the clock), else on the CPU (float32, by processor time). The models
are the preset `tiny`, and one with the width of `sa2va-1b` and `--layers` of its 24 layers; adapters train. Tokens are
those of the rows, without padding. Both ways take turns, and their results are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from benchmarks.conversations import build
from trainer.config import Config
from trainer.model.rows import IGNORE, Rows, TokenRow
from trainer.model.sa2va import Sa2VA
from trainer.model.trainable import set_trainable
from trainer.modes import autocast

PICTURE = 259
"""Tokens of a picture."""
BATCHES = {
    "4 pictures, a phrase each": [PICTURE + text for text in (48, 52, 57, 49)],
    "4 pictures, 2 to 5 phrases": [PICTURE + 45 * phrases for phrases in (2, 5, 3, 5)],
    "a video of 5 frames, 2 pictures, a text": [5 * PICTURE + 5 * 45, PICTURE + 5 * 45, PICTURE + 80, 150],
}
"""Lengths of the rows of a batch: phrases with their question and answer take about 45 tokens."""
_WARM_UP = 2


def seconds(model: Sa2VA, rows: Rows, weights: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """Return the time of one pass forward and backward, and the gradient of the embeddings (S * L, D)."""
    embeddings = model.embedding(rows.ids).detach().requires_grad_()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    with autocast(device, "bf16" if device.type == "cuda" else "no"):
        states = model.run_language_model(embeddings, rows.attention, rows.positions).flatten(0, 1)
        (states.index_select(0, rows.before_labels) * weights).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = clock() - started
    assert embeddings.grad is not None
    return taken, embeddings.grad.flatten(0, 1).index_select(0, rows.before_labels)


def compare(model: Sa2VA, name: str, lengths: list[int], rounds: int, device: torch.device) -> None:
    """Print a line of the table for one batch."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 200, (length,), generator=draw).tolist()
        rows.append(TokenRow(f"row {number}", ids, [IGNORE, *ids[1:]], [False] * length))
    ways = {"padded": model.prompts.padded(rows, device), "packed": model.prompts.packed(rows, device)}
    weights = torch.randn(sum(lengths) - len(lengths), model.embedding.embedding_dim, generator=draw).to(device)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    gradients = {}
    for _ in range(rounds + _WARM_UP):
        for way, laid in ways.items():
            time_of_one, gradients[way] = seconds(model, laid, weights, device)
            taken[way].append(time_of_one)
    padded, packed = (times[_WARM_UP:] for times in taken.values())
    ratios = sorted(a / b for a, b in zip(padded, packed, strict=True))
    share = 1 - sum(lengths) / (len(lengths) * max(lengths))
    rates = " | ".join(f"{sum(lengths) / statistics.median(times):,.0f}" for times in (padded, packed))
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    off = (gradients["packed"] - gradients["padded"]).norm() / gradients["padded"].norm()
    print(f"| {name} | {share:.0%} | {rates} | {ratio} | {off:.0e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows laid end to end against padded rows.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config()
    for name, layers in (("tiny", None), (f"sa2va-1b, {arguments.layers} layers", arguments.layers)):
        torch.manual_seed(0)
        model = build(layers, 32)
        set_trainable(model, config.trainable, **{**vars(config.lora), "dropout": 0.0})
        model.to(device).train()
        print(f"\n{name}\n\n| rows | padding | padded, tokens/s | packed, tokens/s | ratio | gradients differ by |")
        print("|---|---|---|---|---|---|")
        for batch, lengths in BATCHES.items():
            compare(model, batch, lengths, arguments.rounds, device)


if __name__ == "__main__":
    main()
