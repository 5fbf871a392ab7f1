"""The random state of a process, as JSON.

Dropout depends on it. What is drawn for a sample does not (`trainer/objectives/noise.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the random state of Python, numpy, torch on the CPU, and of the GPU where `device` is one."""
    version, words, spare = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(words), spare],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state


def set_random_state(states: Sequence[dict[str, Any]], rank: int, device: torch.device, seed: int) -> None:
    """Restore the state of `rank`; a rank that has none in `states` (or had no GPU) gets one from `seed`.

    Args:
        states: of all ranks, in their order.
        rank: this process.
        device: of this process.
        seed: for a rank without a state.
    """
    set_seed(seed + rank)
    if rank >= len(states):
        return
    state = states[rank]
    version, words, spare = state["python"]
    random.setstate((version, tuple(words), spare))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
