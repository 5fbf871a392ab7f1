"""How fast batches come: the loader against decoding on the fly, and against the bound that memory sets.

    python -m benchmarks.loading [--pairs 48] [--threads 2] [--rounds 3]

One sample is one frame with one object, all four tensors ready in a batch of 8.
  loader      shards through trainer.data.loader.Loader, threads
  on the fly  the raw npz through Pillow and torchvision in a DataLoader with as many worker processes
  memcpy      the delivered bytes copied from memory into a ready batch by as many threads: the bound
They take turns; the ratio of each turn is what counts on a shared machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from demo.make_sav import write
from pipeline.plan import make_plan
from pipeline.run import run
from pipeline.sources import source_named
from shards.recipe import RECIPES
from trainer.data.loader import Loader

BATCH = 8
FIELDS = ("pixel_values1", "g_pixel_values1", "prompt_masks1", "masks1")


class OnTheFly(Dataset):
    """Frame 1 of SAV pairs, as people write it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.to_448 = T.Compose(
            [T.Resize((448, 448)), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        with np.load(self.paths[i]) as arrays:
            picture = Image.fromarray(np.rint(arrays["frame1"]).astype(np.uint8))
            mask = Image.fromarray((arrays["mask1"] > 127.5).astype(np.uint8))
        nearest = T.InterpolationMode.NEAREST
        masks = [TF.pil_to_tensor(TF.resize(mask, [side, side], nearest)).bool() for side in (16, 1024)]
        return self.to_448(picture), TF.pil_to_tensor(picture.resize((1024, 1024))), *masks


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading rates, as ratios.")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder, "sav"), arguments.pairs)
        source, out = source_named("sav"), Path(folder, "shards")
        raw = Path(folder, "sav")
        run(lambda known, records: make_plan(source, raw, RECIPES["default"], 10**9, records, {}), out, 1, 0.0)
        loader = Loader([str(out)], fields=FIELDS, batch_size=BATCH, seed=0, threads=arguments.threads)
        plain = DataLoader(OnTheFly(paths), BATCH, drop_last=True, num_workers=arguments.threads)
        ready = {name: value for name, value in next(loader.epoch(0)).items() if name in FIELDS}
        batch = {name: torch.empty_like(value) for name, value in ready.items()}
        pool = ThreadPoolExecutor(arguments.threads)

        def memcpy() -> int:
            for _ in range(loader.steps_per_epoch):
                rows = [(name, row) for name in ready for row in range(BATCH)]
                list(pool.map(lambda at: batch[at[0]][at[1]].copy_(ready[at[0]][at[1]]), rows))
            return loader.steps_per_epoch * BATCH

        ways: dict[str, Callable[[], int]] = {
            "loader": lambda: sum(BATCH for _ in loader.epoch(0)),
            "on the fly": lambda: sum(BATCH for _ in plain),
            "memcpy": memcpy,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds + 1):  # the first round warms up
            for name, call in ways.items():
                started = time.perf_counter()
                rates[name].append(call() / (time.perf_counter() - started))
    for name, values in rates.items():
        low, *_, high = sorted(values[1:])
        print(f"{name}: {statistics.median(values[1:]):.0f} samples/s (from {low:.0f} to {high:.0f})")
    for other in ("on the fly", "memcpy"):
        ratios = sorted(a / b for a, b in zip(rates["loader"][1:], rates[other][1:], strict=True))
        print(f"loader / {other}: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
