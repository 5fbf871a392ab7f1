"""The learning rate over a run."""

from __future__ import annotations

import math


def rate_factor(step: int, *, warmup_steps: int, warmup_from: float, steps: int) -> float:
    """Return the share of the full learning rate for optimiser step `step`, counted from 0.

    Linear from `warmup_from` to 1 over `warmup_steps`, then a cosine that reaches 0 at `steps` (Loshchilov and Hutter
    2017).
    """
    if step < warmup_steps:
        return warmup_from + (1 - warmup_from) * step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))))
