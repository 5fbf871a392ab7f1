"""Losses and metrics of held-out samples, and panels that show predictions for some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trainer.config import Config
from trainer.data.batch import Frame, PairBatch, required
from trainer.data.loader import Loader
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
    """Means over the objects of held-out samples, the same for any number of processes; in the main process, pictures.

    Means are those of `Judged.values`; with masks also `mask_loss`, BCE + Dice, and `ciou`, all overlaps over all
    unions. A value that no object has is left out.

    Args:
        loader: yields the held-out samples with the objective's `panel_fields()`.

    Returns:
        The means by name, and panels of `eval.show` objects; none on other processes.
    """
    shown: list[Panel] = []
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in loader.epoch(0):  # the same samples each time
        with autocast(accelerator.device, config.mixed_precision):
            judged = step.judge(batch, objective)
        assert isinstance(batch, PairBatch)
        if accelerator.is_main_process and len(shown) < config.eval.show:
            shown += _panels(batch, judged, objective)
        for name, value in judged.values.items():
            known = ~value.isnan() & (not batch.is_padding)
            # Python's floats: Apple's GPUs have no float64.
            sums[name] = sums.get(name, 0.0) + float(value[known].sum())
            counts[name] = counts.get(name, 0) + int(known.sum())
    of_all = gather_object([(sums, counts)])
    totals = {name: sum(one[name] for one, _ in of_all) for name in sums}
    numbers = {name: sum(one[name] for _, one in of_all) for name in counts}
    means = {name: totals[name] / number for name, number in numbers.items() if number and name not in _AREAS}
    if "bce" in means:
        means = {"mask_loss": means["bce"] + means["dice_loss"], **means}
        means["ciou"] = totals["overlap"] / max(totals["union"], 1)
    return means, shown[: config.eval.show]


def _panels(batch: PairBatch, judged: Judged, objective: str) -> Iterator[Panel]:
    shown = load_objective(objective)
    first = batch.frames[0]
    target = batch.frames[(shown.target_frame or 1) - 1]
    points = regular_points(1, _SIDE, torch.device("cpu"))

    def mask_of(frame: Frame, number: int) -> Any:
        return _square(truth_at(unpacked(required(frame.masks)[number : number + 1]), points))

    for i, sample in enumerate(batch.image_of_object.tolist()):
        prompt = None
        if shown.shows_region:
            prompt = tinted(_thumbnail(required(first.g_pixel_values)[sample]), mask_of(first, i))
        prediction = None if judged.logits is None else judged.logits[i : i + 1].cpu()
        numbers = ("iou", "swap_gap", "caption")
        yield Panel(
            name=batch.keys[sample],
            prompt=prompt,
            image=_thumbnail(required(target.g_pixel_values)[sample]),
            truth=mask_of(target, i),
            prediction=None if prediction is None else _square(logits_at(prediction, points) > 0),
            caption=judged.captions[i],
            values={name: float(judged.values[name][i]) for name in numbers if name in judged.values},
        )


def _thumbnail(image: torch.Tensor) -> Any:
    """Every fourth pixel of (3, 1024, 1024): (256, 256, 3) uint8. For people to see; the model never reads it."""
    step = image.shape[-1] // _SIDE
    return np.ascontiguousarray(image[:, step // 2 :: step, step // 2 :: step].permute(1, 2, 0).numpy())


def _square(values: torch.Tensor) -> Any:
    return values.view(_SIDE, _SIDE).numpy()
