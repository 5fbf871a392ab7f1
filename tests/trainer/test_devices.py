"""Whole steps, evaluations and predictions with tensors that carry a pretended device; see tests/devices.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from tests.devices import DeviceTensor, PretendedDevice, pretended_gpu, register  # noqa: F401 (a fixture)
from tests.trainer.runs import SMALL
from trainer import build, train, transfer
from trainer.config import Config
from trainer.data.batch import Batch
from trainer.data.copying import Copies, Event
from trainer.measure.held_out import HeldOut
from trainer.stall import StallWatch


class AtOnce(Copies[Batch]):
    """Copies as on a GPU, without a stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self, batch: Batch) -> tuple[Batch, AtOnce]:
        return batch.on(self._device), self

    def use(self, batch: Batch, copied: Event) -> None:
        assert all(isinstance(tensor, DeviceTensor) for tensor in batch.tensors())

    def synchronize(self) -> None:
        pass


@pytest.fixture
def train_on(gpu: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a training on the pretended device, with one evaluation, after the last step.

    `gpu.phase` is what the run says that it does.
    """
    make, at, is_due = train.make_accelerator, StallWatch.at, HeldOut.is_due

    def make_accelerator(config: Config) -> Accelerator:
        accelerator = make(config)
        for state in (PartialState, AcceleratorState):
            state._shared_state["device"] = register()
        return accelerator

    def mark(watch: StallWatch, doing: str) -> None:
        gpu.phase = doing
        at(watch, doing)

    monkeypatch.setattr(train, "make_accelerator", make_accelerator)
    monkeypatch.setattr(transfer, "page_locks", lambda device: device == register())
    monkeypatch.setattr(build, "copies_to", AtOnce)
    monkeypatch.setattr(StallWatch, "at", mark)
    monkeypatch.setattr(HeldOut, "is_due", lambda held_out, step: step > 0 and is_due(held_out, step))
    return lambda *arguments: train.main([*SMALL, *arguments])


@pytest.mark.slow
def test_a_step_and_an_evaluation_of_every_objective(
    gpu: PretendedDevice, train_on: Callable[..., None], unequal_set: Path, tmp_path: Path
):
    """`project` runs the objectives one after another and combines their gradients; in bfloat16, by autocast."""
    train_on(
        f"output_dir={tmp_path / 'run'}",
        f"data.shards=[{unequal_set}]",
        *("steps=1", "batch_size=1", "accumulation=1", "data.objects_per_sample=2", "mixed_precision=bf16"),
        *("data.holdout=0.2", "data.holdout_by=sample", "eval.samples=1", "eval.show=1", "eval.answer_tokens=2"),
        *("mix={dual: {}, segment: {}, describe: {}, reverse: {}, converse: {}}", "project=true"),
    )
    assert {"step 1", "what follows step 1"} <= {wait.phase for wait in gpu.waits}


ALLOWED = {"to host: trainer/agreement.py over_processes"}
"""Where the host may wait for the device in a step on one GPU, as docs/PERFORMANCE.md explains."""


@pytest.mark.slow
def test_a_step_of_segment_lets_the_host_wait_once(
    gpu: PretendedDevice, train_on: Callable[..., None], unequal_set: Path, tmp_path: Path
):
    train_on(
        f"output_dir={tmp_path / 'run'}",
        *(f"data.shards=[{unequal_set}]", "objective=segment", "steps=2", "batch_size=2", "accumulation=1"),
        *("data.objects_per_sample=2", "data.holdout=0"),
    )
    waits = [wait for wait in gpu.waits if wait.phase == "step 2"]  # the first step fills caches
    assert {f"{wait.kind}: {wait.place}" for wait in waits} == ALLOWED, [*map(str, waits)]
    assert len(waits) == len(ALLOWED)


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
