"""The teacher: follows its closed form in float32, holds trainable tensors only, describes with its own weights."""

from __future__ import annotations

import pytest
import torch

from trainer.data.batch import PairBatch
from trainer.model.captioner import Captioner
from trainer.objectives.dual import pseudo_captions
from trainer.objectives.noise import object_generators
from trainer.objectives.teacher import Teacher


def gap(teacher: Teacher) -> torch.Tensor:
    pairs = [(teacher.shadow[name], p) for name, p in teacher._student.items()]
    return torch.cat([(s - p.detach().float()).flatten() for s, p in pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distance_to_a_fixed_student_is_decay_to_the_n(make_loop, dtype):
    """A teacher in bfloat16 would keep almost all of the distance."""
    model = make_loop().model.to(dtype)
    teacher = Teacher(model, decay=0.999)
    with torch.no_grad():
        for parameter in teacher._student.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    before = gap(teacher)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for _ in range(400):
            teacher.update()
    assert teacher.shadow[next(iter(teacher.shadow))].dtype == torch.float32
    assert (gap(teacher).norm() / before.norm()).item() == pytest.approx(0.999**400, rel=1e-3)


def test_the_teacher_holds_trainable_tensors_only(make_loop):
    loop = make_loop()
    trainable = {name for name, p in loop.model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("model.") for name in loop.teacher.shadow} == trainable
    shared = {p.data_ptr() for p in loop.model.parameters()}
    assert not shared & {s.data_ptr() for s in loop.teacher.shadow.values()}
    assert not any("teacher" in name for name, _ in loop.named_parameters())
    assert not any(s.requires_grad for s in loop.teacher.shadow.values())


def test_only_an_update_changes_the_teacher(make_loop, batch: PairBatch):
    loop = make_loop()
    before = {name: s.clone() for name, s in loop.teacher.shadow.items()}
    with torch.no_grad():
        for parameter in loop.teacher._student.values():
            parameter.add_(0.01)  # an update would be noticed from the first step on
    optimizer = torch.optim.SGD([p for p in loop.parameters() if p.requires_grad], lr=0.1)
    loop(batch, "dual")["loss"].backward()
    optimizer.step()
    assert all(torch.equal(before[name], s) for name, s in loop.teacher.shadow.items())
    loop.teacher.update()
    assert not all(torch.equal(before[name], s) for name, s in loop.teacher.shadow.items())


def test_the_teacher_describes_with_its_weights_and_does_not_change_the_student(make_loop, batch: PairBatch):
    loop = make_loop()
    model = loop.model
    visual_tokens = model.encode_image(batch.frames[0].pixel_values)
    question = loop.passes.captioner_inputs(batch, visual_tokens)
    with torch.no_grad():
        model.eval()
        at_first = Captioner(model)(*question, 5).tokens()
        model.train()
        for parameter in loop.teacher._student.values():
            parameter.add_(torch.randn_like(parameter))
        changed = {name: p.clone() for name, p in model.named_parameters()}
    assert loop.teacher.generate(*question, 5).tokens() == at_first
    assert model.training
    assert all(torch.equal(changed[name], p) for name, p in model.named_parameters())
    model.eval()
    assert Captioner(model)(*question, 5).tokens() != at_first


def test_captions_are_without_dropout(make_loop, config, batch: PairBatch):
    config.lora.dropout = 0.9
    loop = make_loop(config)
    draws = object_generators(batch, 0)
    visual_tokens = loop.model.encode_image(batch.frames[0].pixel_values)
    first = pseudo_captions(loop.passes, loop.teacher, batch, visual_tokens, draws)
    assert all(pseudo_captions(loop.passes, loop.teacher, batch, visual_tokens, draws) == first for _ in range(3))
