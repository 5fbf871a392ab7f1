"""How well masks that look at no picture do on a run's held-out objects: what a model has to beat.

python demo/constants.py runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shards.groups import named_group
from trainer.config import Config, load_config
from trainer.data.loader import Loader
from trainer.objectives import load_objective
from trainer.objectives.losses import regular_points, truth_at
from trainer.objectives.metrics import mask_metrics

_SIDE = 256
_LEVELS = 50  # tried for the mean mask


def constants(config: Config) -> dict[str, dict[str, float]]:
    """`iou` and `dice` of each constant mask, means over the objects that the run's evaluation takes.

    The mean mask is that of the training objects, above the level at which its IoU is best on the held-out objects
    themselves: no level does better, so none flatters the model.
    """
    wanted = _masks(config, "holdout")
    mean = _at(_masks(config, "train")).float().mean(0)
    tried = {level: _scores(mean * _LEVELS - level, wanted) for level in range(_LEVELS)}
    level = max(tried, key=lambda level: tried[level]["iou"])
    return {
        "all foreground": _scores(torch.ones_like(mean), wanted),
        "all background": _scores(-torch.ones_like(mean), wanted),
        f"mean mask above {level / _LEVELS:.2f}": tried[level],
    }


def _scores(logits: Tensor, masks: Tensor) -> dict[str, float]:
    """Of one prediction (256 * 256,) for all masks (N, 1024, 1024), as training's own evaluation counts it."""
    found = mask_metrics(logits.view(1, _SIDE, _SIDE).expand(len(masks), -1, -1), masks, _SIDE)
    return {name: found[name].mean().item() for name in ("iou", "dice")}


def _at(masks: Tensor) -> Tensor:
    return truth_at(masks, regular_points(len(masks), _SIDE, masks.device))


def _masks(config: Config, part: Literal["train", "holdout"]) -> Tensor:
    """The truth of a part's objects, (N, 1024, 1024): one epoch in training, the evaluation's first samples."""
    field = f"masks{load_objective('dual').target_frame}"
    held = part == "holdout"
    loader = Loader(
        config.data.shards,
        fields=(field,),
        batch_size=config.batch_size if held else 1,
        seed=config.seed,
        holdout=config.data.holdout,
        holdout_by=named_group(config.data.holdout_by),
        part=part,
        sources=config.objectives()["dual"].sources,
        objects_per_sample=max(2, config.data.objects_per_sample),
        need="regions",
    )
    most = -(-config.eval.samples // config.batch_size) if held else None
    batches = [batch[field].clone() for number, batch in enumerate(loader.epoch(0)) if most is None or number < most]
    return torch.cat(batches)


if __name__ == "__main__":
    for name, values in constants(load_config([str(Path(sys.argv[1]) / "config.yaml")])).items():
        print(f"{name}: IoU {values['iou']:.3f}, Dice {values['dice']:.3f}")
