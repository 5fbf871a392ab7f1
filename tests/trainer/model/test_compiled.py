"""Compiled layers: the same numbers under the same names."""

from __future__ import annotations

import pytest
import torch

from tests.conversations import about_objects
from trainer.data.batch import PairBatch
from trainer.model import compiled
from trainer.objectives.dual import pseudo_captions
from trainer.objectives.noise import object_generators


def test_a_compiled_step_equals_the_uncompiled_one(make_loop, batch: PairBatch, monkeypatch: pytest.MonkeyPatch):
    """Traced by dynamo with PyTorch's kernels, each size separately, so that the test takes seconds."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    torch._dynamo.reset()
    eager = make_loop()
    faster = make_loop()
    assert compiled.compile_layers(faster.model) == 2 + 2 + 4  # vision tower, language model, SAM 2's image encoder
    asked = about_objects(batch, eager.model.prompts, "segment")
    results = [loop(asked, "segment") for loop in (eager, faster)]
    frames = dict(torch._dynamo.utils.counters["frames"])
    assert frames["ok"] >= 3, frames  # something was compiled
    for name, value in results[0].items():
        assert results[1][name].item() == pytest.approx(value.item(), rel=1e-4), name
    for result in results:
        result["loss"].backward()
    assert eager.state_dict().keys() == faster.state_dict().keys()
    for (name, one), (other, two) in zip(eager.named_parameters(), faster.named_parameters(), strict=True):
        assert name == other
        assert one.grad is None or torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-5), name
    visual_tokens = eager.model.encode_image(batch.frames[0].pixel_values)
    captions = [
        pseudo_captions(loop.passes, loop.teacher, batch, visual_tokens, object_generators(batch, 0))
        for loop in (eager, faster)
    ]
    assert captions[0] == captions[1]
    assert dict(torch._dynamo.utils.counters["frames"]) == frames  # captions are written by the layers as they are
