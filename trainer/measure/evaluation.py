"""Held-out samples: their losses and metrics, and pictures of what the model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.config import Config
from trainer.data.loader import Batch, Loader
from trainer.data.unpack import unpacked
from trainer.measure.report import Panel, tinted
from trainer.modes import autocast
from trainer.objectives import load_objective
from trainer.objectives.judging import Judged
from trainer.objectives.losses import logits_at, regular_points, truth_at
from trainer.objectives.step import Step

_SIDE = 256
_AREAS = ("overlap", "union")


def evaluate(
    accelerator: Accelerator, step: Step, loader: Loader, objective: str, config: Config
) -> tuple[dict[str, float], list[Panel]]:
    """Means over the held-out objects of all processes, and in the main process pictures of the first `eval.show`.

    Means are those of `Judged.values`; with masks also of `mask_loss`, BCE + Dice, and `ciou`, all overlaps over all
    unions. Of values that no object has there is none.

    Args:
        loader: yields the objective's `panel_fields()`.
    """
    shown: list[Panel] = []
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    per_step = config.batch_size * accelerator.num_processes
    for batch in _first(loader, -(-config.eval.samples // per_step)):
        with autocast(accelerator.device, config.mixed_precision):
            judged = step.judge(batch, objective)
        if accelerator.is_main_process and len(shown) < config.eval.show:
            shown += _panels(batch, judged, objective)
        for name, value in judged.values.items():
            known = ~value.isnan()
            sums[name] = sums.get(name, 0) + value[known].sum().double()
            counts[name] = counts.get(name, 0) + known.sum().double()
    stacked = torch.stack([*sums.values(), *counts.values()])[None]
    totals, numbers = accelerator.gather(stacked).sum(0).chunk(2)
    of = dict(zip(sums, zip(totals.tolist(), numbers.tolist(), strict=True), strict=True))
    means = {name: total / number for name, (total, number) in of.items() if number and name not in _AREAS}
    if "bce" in means:
        means = {"mask_loss": means["bce"] + means["dice_loss"], **means}
        means["ciou"] = of["overlap"][0] / max(of["union"][0], 1)
    return means, shown[: config.eval.show]


def _first(loader: Loader, steps: int) -> Iterator[Batch]:
    """The same first batches each time."""
    return islice(loader.epoch(0), steps)


def _panels(batch: Batch, judged: Judged, objective: str) -> Iterator[Panel]:
    shown = load_objective(objective)
    frame = shown.target_frame or 1
    for i, sample in enumerate(batch["image_of_object"].tolist()):
        points = regular_points(1, _SIDE, torch.device("cpu"))
        prompt = None
        if shown.shows_region:
            region = _square(truth_at(unpacked(batch["masks1"][i : i + 1]), points))
            prompt = tinted(_thumbnail(batch["g_pixel_values1"][sample]), region)
        prediction = None if judged.logits is None else judged.logits[i : i + 1].cpu()
        numbers = ("iou", "swap_gap", "caption")
        yield Panel(
            name=batch["keys"][sample],
            prompt=prompt,
            image=_thumbnail(batch[f"g_pixel_values{frame}"][sample]),
            truth=_square(truth_at(unpacked(batch[f"masks{frame}"][i : i + 1]), points)),
            prediction=None if prediction is None else _square(logits_at(prediction, points) > 0),
            caption=judged.captions[i],
            values={name: float(judged.values[name][i]) for name in numbers if name in judged.values},
        )


def _thumbnail(image: torch.Tensor) -> Any:
    """Every so many-th pixel of (3, 1024, 1024): (256, 256, 3) uint8. A picture for the eye, not for the model."""
    step = image.shape[-1] // _SIDE
    return np.ascontiguousarray(image[:, step // 2 :: step, step // 2 :: step].permute(1, 2, 0).numpy())


def _square(values: torch.Tensor) -> Any:
    return values.view(_SIDE, _SIDE).numpy()
