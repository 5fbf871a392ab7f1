"""Nothing in `trainer/` resizes: every resizing function raises while real steps run. Nor do steps need float64.

Unless sam2 or transformers call it: those resize feature maps and position tables inside their models.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import PIL.Image
import PIL.ImageOps
import pytest
import torch
import torchvision.transforms as transforms
import torchvision.transforms.functional as functional
import torchvision.transforms.v2 as transforms_v2
import torchvision.transforms.v2.functional as functional_v2

from tests.conversations import conversation_batch
from tests.trainer.test_no_float64 import NoFloat64
from trainer.data.batch import PairBatch

NN = torch.nn.functional
RESIZING = [
    *((NN, name) for name in ("interpolate", "upsample", "upsample_bilinear", "upsample_nearest")),
    *((NN, name) for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d", "affine_grid")),
    *((torch.nn.Upsample, name) for name in ("forward",)),
    *((torch.nn.AdaptiveAvgPool2d, name) for name in ("forward",)),
    *((functional, name) for name in ("resize", "resized_crop", "affine")),
    *((functional_v2, name) for name in ("resize", "resize_image", "resize_mask", "resized_crop", "affine")),
    *((transforms.Resize, name) for name in ("forward",)),
    *((transforms_v2.Resize, name) for name in ("transform",)),
    *((PIL.Image.Image, name) for name in ("resize", "thumbnail", "reduce", "transform", "draft")),
    *((PIL.ImageOps, name) for name in ("fit", "contain", "cover", "pad", "scale")),
]
ALLOWED = ("sam2.", "transformers.")


class Resized(Exception):
    pass


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def guarded(*args, **kwargs):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith(ALLOWED):
                raise Resized(f"{name} called from {caller}")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    for owner, name in RESIZING:
        guard(owner, name)


def test_guarded_functions_raise(guarded):
    with pytest.raises(Resized):
        NN.interpolate(torch.zeros(1, 1, 4, 4), size=(2, 2))
    with pytest.raises(Resized):
        torch.nn.Upsample(scale_factor=2)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(Resized):
        functional.resize(torch.zeros(1, 4, 4), [2, 2])
    with pytest.raises(Resized):
        transforms_v2.Resize((2, 2))(torch.zeros(1, 4, 4))
    with pytest.raises(Resized):
        PIL.Image.new("L", (4, 4)).resize((2, 2))
    with pytest.raises(Resized):
        PIL.Image.new("L", (4, 4)).thumbnail((2, 2))


@pytest.mark.parametrize("objective", ["dual", "reverse", "converse"])  # which hold the passes of the others
def test_a_step_and_its_judging_use_no_resizing_and_no_float64(guarded, make_loop, batch: PairBatch, objective: str):
    loop = make_loop()
    pairs = replace(batch, texts=[["an eye"], ["a helmet"]])
    batch = conversation_batch(pairs, loop.model.prompts) if objective == "converse" else pairs
    optimizer = torch.optim.AdamW([p for p in loop.parameters() if p.requires_grad], lr=1e-3)
    with NoFloat64():
        loop(batch, objective)["loss"].backward()
        optimizer.step()
        loop.teacher.update()
        loop.judge(batch, objective)
