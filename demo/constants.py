"""IoU and Dice of constant masks on a run's held-out objects: what a model has to beat.

python demo/constants.py runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trainer.config import Config, load_config
from trainer.data.batch import ConversationBatch, required
from trainer.data.loader import Loader, LoaderOptions
from trainer.loader_options import judging_options, prompts_of
from trainer.objectives import load_objective
from trainer.objectives.losses import regular_points, truth_at
from trainer.objectives.metrics import mask_metrics

_SIDE = 256
_LEVELS = 50  # tried for the mean mask


def constants(config: Config) -> dict[str, dict[str, float]]:
    """`iou` and `dice` of each constant mask, means over the objects that the run's evaluation of dual takes."""
    return best_constants(_masks(config, "train"), _masks(config, "holdout"))


def conversation_constants(config: Config) -> dict[str, float]:
    """IoU of an all-foreground mask by kind of conversation, means over the masks of the run's evaluation of converse.

    A mask that is empty, because its frame does not show the object, is not counted, as in the evaluation.
    """
    chosen = judging_options(config, "converse", prompts_of(config), batch_size=1)
    found: dict[str, list[Tensor]] = {}
    for batch in Loader(config.data.shards, chosen).epoch(0):
        assert isinstance(batch, ConversationBatch)
        if batch.masks is not None:  # all rows of a sample are of one kind
            masks = batch.masks[batch.masks.flatten(1).any(1)]
            found.setdefault(batch.conversations[0].kind, []).append(masks)
    whole = torch.ones(_SIDE * _SIDE)
    return {kind: _scores(whole, torch.cat(masks))["iou"] for kind, masks in found.items()}


def best_constants(trained: Tensor, wanted: Tensor) -> dict[str, dict[str, float]]:
    """`iou` and `dice` of each constant mask for `wanted`; both (N, 1024, 1024).

    The mean mask is that of the training objects, above the level at which its IoU is best on the held-out objects
    themselves: no level does better, so none flatters the model.
    """
    mean = _at(trained).float().mean(0)
    tried = {level: _scores(mean * _LEVELS - level, wanted) for level in range(_LEVELS)}
    level = max(tried, key=lambda level: tried[level]["iou"])
    return {
        "all foreground": _scores(torch.ones_like(mean), wanted),
        "all background": _scores(-torch.ones_like(mean), wanted),
        f"mean mask above {level / _LEVELS:.2f}": tried[level],
    }


def _scores(logits: Tensor, masks: Tensor) -> dict[str, float]:
    """Mean IoU and Dice of one prediction (256 * 256,) for all masks (N, 1024, 1024), as evaluation counts it."""
    found = mask_metrics(logits.view(1, _SIDE, _SIDE).expand(len(masks), -1, -1), masks, _SIDE)
    return {name: found[name].mean().item() for name in ("iou", "dice")}


def _at(masks: Tensor) -> Tensor:
    return truth_at(masks, regular_points(len(masks), _SIDE, masks.device))


def _masks(config: Config, part: Literal["train", "holdout"]) -> Tensor:
    """The truth of a part's objects, (N, 1024, 1024): one epoch in training, the evaluation's first samples."""
    frame = load_objective("dual").target_frame or 1
    options = LoaderOptions(
        fields=(f"masks{frame}",),
        batch_size=1,
        seed=config.seed,
        holdout=config.data.holdout,
        holdout_by=config.data.holdout_by,
        part=part,
        limit=config.eval.samples if part == "holdout" else None,
        sources=config.objectives()["dual"].sources,
        objects_per_sample=max(2, config.data.objects_per_sample),
        need="regions",
    )
    batches = Loader(config.data.shards, options).epoch(0)
    return torch.cat([required(batch.frames[frame - 1].masks).clone() for batch in batches])


if __name__ == "__main__":
    for name, values in constants(load_config([str(Path(sys.argv[1]) / "config.yaml")])).items():
        print(f"{name}: IoU {values['iou']:.3f}, Dice {values['dice']:.3f}")
