"""Held-out samples for tests."""

import numpy as np

from trainer.measure.report import Panel


def panel(caption: str, prompt: bool = True) -> Panel:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[4:9, 20:30] = True
    return Panel(
        "pair_1", image if prompt else None, image, mask, ~mask, caption, {"iou": 0.25, "swap_gap": float("nan")}
    )
