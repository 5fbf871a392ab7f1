"""Whole steps, evaluations and predictions with tensors that carry a pretended device; see tests/devices.py."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from tests.devices import DeviceTensor, PretendedDevice, pretended_gpu, register  # noqa: F401 (a fixture)
from tests.trainer.runs import SMALL
from trainer.build import build_run
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import load_config
from trainer.strategy import make_accelerator
from trainer.train import stall_watch, train


def run_on(gpu: PretendedDevice, folder: Path, *arguments: str) -> None:
    """Train on the pretended device, with one evaluation, after the last step; `gpu.phase` names what the run does."""
    config = load_config([*SMALL, *arguments, f"output_dir={folder}"])
    accelerator = make_accelerator(config)
    for state in (PartialState, AcceleratorState):
        state._shared_state["device"] = register()
    with closing(RunFolder(folder, 1)) as run_folder, closing(stall_watch(config, accelerator)) as watch:
        run = build_run(config, accelerator, run_folder, watch)
        assert run
        at, is_due = run.watch.at, run.held_out.is_due

        def mark(doing: str) -> None:
            gpu.phase = doing
            at(doing)

        run.watch.at = mark  # type: ignore[method-assign]
        run.held_out.is_due = lambda step: step > 0 and is_due(step)  # type: ignore[method-assign]
        assert train(run) == 0
        assert {p.device for p in run.learner.trainable} == {register()}


@pytest.mark.slow
def test_a_step_and_an_evaluation_of_every_objective(gpu: PretendedDevice, unequal_set: Path, tmp_path: Path):
    """`project` runs the objectives one after another and combines their gradients; in bfloat16, by autocast."""
    run_on(
        gpu,
        tmp_path / "run",
        f"data.shards=[{unequal_set}]",
        *("steps=1", "batch_size=1", "accumulation=1", "data.objects_per_sample=2", "mixed_precision=bf16"),
        *("data.holdout=0.2", "data.holdout_by=sample", "eval.samples=1", "eval.show=1", "eval.answer_tokens=2"),
        *("mix={dual: {}, segment: {}, describe: {}, reverse: {}, converse: {}}", "project=true"),
    )
    assert {"step 1", "what follows step 1"} <= {wait.phase for wait in gpu.waits}


def test_what_cuda_refuses_is_refused(gpu: PretendedDevice):
    device = register()
    here = torch.ones(3, device=device)
    there = torch.ones(3)
    layer = nn.Linear(3, 3).to(device)
    attempts = [
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.stack([torch.ones((), device=device), torch.ones(())]),
        lambda: layer(there),
        lambda: there.add_(here[0]),
        lambda: here.index_select(0, torch.tensor([0])),
        lambda: there[torch.tensor([0], device=device)],
        lambda: here.index_put((torch.tensor([0], device=device),), there[:1]),
        lambda: torch.where(here > 0, here, there),
        lambda: torch.rand(2, device=device, generator=torch.Generator()),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
            attempt()
            pytest.fail(f"attempt {number}")
    with pytest.raises(TypeError, match="convert"):
        here.numpy()


def test_what_cuda_allows_is_allowed(gpu: PretendedDevice):
    device = register()
    here = torch.ones(3, device=device)
    scalar = torch.tensor(2.0)
    results = [
        here * scalar,
        scalar * here,
        torch.where(here > 0, scalar, here),
        here.masked_fill(here > 0, scalar),
        here[torch.tensor([0, 1])],
        here.index_put((torch.tensor([0]),), scalar),
        torch.zeros(2, device=device).copy_(torch.ones(2)),
        nn.functional.dropout(here, 0.5),
    ]
    assert all(isinstance(result, DeviceTensor) and result.device == device for result in results)
    weight = nn.Parameter(torch.full((2, 2), 3.0)).to(device).detach().requires_grad_()
    (weight * weight).sum().backward()
    assert weight.grad is not None and weight.grad.device == device and weight.grad.cpu().tolist() == [[6.0, 6.0]] * 2
    with torch.autocast(device.type, torch.bfloat16):
        assert nn.functional.linear(here[None], torch.ones(2, 3, device=device)).dtype == torch.bfloat16
        assert here.bfloat16().softmax(0).dtype == torch.float32


def test_waits_are_counted(gpu: PretendedDevice):
    device = register()
    here = torch.ones(3, device=device)
    page_locked = torch.ones(3).pin_memory()
    assert page_locked.is_pinned() and not torch.ones(3).is_pinned()
    gpu.waits.clear()
    quiet = [
        page_locked.to(device, non_blocking=True),
        torch.empty(3, device=device).copy_(page_locked, non_blocking=True),
        here.index_select(0, torch.zeros(1, dtype=torch.int64, device=device)),
        here[here.long()],
        torch.where(here > 0, here, 0),
        torch.arange(3, device=device),
        torch.zeros(0).to(device),
    ]
    assert quiet and not gpu.waits
    waiting = {
        "value": [here.tolist, here.sum().item, lambda: bool(here.any()), lambda: here.long().bincount()],
        "shape": [here.nonzero, lambda: here[here > 0], here.unique, lambda: here.masked_select(here > 0)],
        "index": [lambda: here[torch.tensor([0])]],
        "to host": [here.cpu, lambda: torch.ones(3).copy_(here)],
        "to device": [
            lambda: torch.tensor([1.0], device=device),
            lambda: torch.ones(3).to(device, non_blocking=True),
            lambda: page_locked.to(device),
            lambda: page_locked.to(device, torch.float16, non_blocking=True),
        ],
    }
    for kind, attempts in waiting.items():
        for attempt in attempts:
            gpu.waits.clear()
            attempt()
            assert [wait.kind for wait in gpu.waits] == [kind]
