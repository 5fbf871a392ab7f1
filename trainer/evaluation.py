"""Held-out samples: their losses and metrics, and pictures of what the model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from trainer.config import Config
from trainer.data import Batch, Loader
from trainer.losses import logits_at, regular_points, truth_at
from trainer.report import Panel, tinted
from trainer.step import TARGET_FRAME, Step

SHOWN = {
    "dual": (
        "pixel_values1",
        "prompt_masks1",
        "g_pixel_values1",
        "masks1",
        "pixel_values2",
        "g_pixel_values2",
        "masks2",
    ),
    "segment": ("pixel_values1", "g_pixel_values1", "masks1"),
}
"""What `panels` reads of a batch, by objective."""
_SIDE = 256


def evaluate(accelerator: Accelerator, loop: Step, loader: Loader, config: Config) -> dict[str, float]:
    """Means over the held-out objects of all processes: mask_loss (BCE + Dice), bce, dice_loss, iou, dice."""
    sums: dict[str, torch.Tensor] = {}
    objects = 0
    per_step = config.batch_size * accelerator.num_processes
    for batch in _first(loader, -(-config.eval.samples // per_step)):
        with accelerator.autocast():
            result = loop.evaluate(batch, config.objective)
        for name in ("bce", "dice_loss", "iou", "dice"):
            sums[name] = sums.get(name, 0) + result[name].sum()
        objects += len(result["iou"])
    counted = torch.stack([*sums.values(), torch.tensor(float(objects), device=accelerator.device)])
    *totals, number = accelerator.gather(counted[None]).sum(0).tolist()
    means = {name: total / number for name, total in zip(sums, totals, strict=True)}
    return {"mask_loss": means["bce"] + means["dice_loss"], **means}


def panels(accelerator: Accelerator, loop: Step, loader: Loader, config: Config) -> list[Panel]:
    """The first `eval.show` held-out objects of this process. `loader` yields the fields `SHOWN`."""
    shown: list[Panel] = []
    for batch in _first(loader, -(-config.eval.show // config.batch_size)):
        with accelerator.autocast():
            result = loop.evaluate(batch, config.objective)
        shown += _panels(batch, result, config.objective)
    return shown[: config.eval.show]


def _first(loader: Loader, steps: int) -> Iterator[Batch]:
    """The same first batches each time."""
    return islice(loader.epoch(0), steps)


def _panels(batch: Batch, result: dict[str, Any], objective: str) -> Iterator[Panel]:
    frame = TARGET_FRAME[objective]
    images = {k: batch[f"g_pixel_values{k}"] for k in (1, frame)}
    for i, sample in enumerate(batch["image_of_object"].tolist()):
        points = regular_points(1, _SIDE, torch.device("cpu"))
        image = _thumbnail(images[frame][sample])
        prompt = None
        if objective == "dual":
            prompt = tinted(_thumbnail(images[1][sample]), _square(truth_at(batch["masks1"][i : i + 1], points)))
        yield Panel(
            name=batch["keys"][sample],
            prompt=prompt,
            image=image,
            truth=_square(truth_at(batch[f"masks{frame}"][i : i + 1], points)),
            prediction=_square(logits_at(result["logits"][i : i + 1].cpu(), points) > 0),
            caption=result["captions"][i],
            iou=float(result["iou"][i]),
        )


def _thumbnail(image: torch.Tensor) -> Any:
    """Every so many-th pixel of (3, 1024, 1024): (256, 256, 3) uint8. A picture for the eye, not for the model."""
    step = image.shape[-1] // _SIDE
    return np.ascontiguousarray(image[:, step // 2 :: step, step // 2 :: step].permute(1, 2, 0).numpy())


def _square(values: torch.Tensor) -> Any:
    return values.view(_SIDE, _SIDE).numpy()
