"""Measure the model in training on published benchmarks, as `cli.py benchmark` measures one that is finished.

Their data and their measures are not the trainer's: `HOOK` names what knows them, and it is imported only for a run
that asks for it. Pages and answers stay in OUTPUT_DIR/benchmarks/step-NNNNNN/NAME-SPLIT.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import nn

from shards.recipe import Recipe
from trainer import fsdp
from trainer.agreement import decided_by_main
from trainer.checkpoints.rng import random_state, set_random_state
from trainer.config import BenchmarkConfig, Config
from trainer.measure.journal import Journal
from trainer.model.compiled import uncompiled
from trainer.modes import evaluating
from trainer.objectives.step import Step
from trainer.released.loaded import LoadedModel, ModelInfo
from trainer.trained import frames_shown

HOOK = "evaluation.published.in_training:Opened"
"""Module and class that measures."""
FOLDER = "benchmarks"


class Measuring(Protocol):
    """Benchmarks whose data is found."""

    def answer(self, loaded: LoadedModel, folder: Path, half: bool, frames: int | None) -> None:
        """Answer all items, together with the other processes.

        Args:
            loaded: the model, in evaluation mode. SAM 2 becomes float32.
            folder: which all processes see.
            half: whether to compute in bfloat16 where weights are float32.
            frames: spread frames of a video that the training shows at once; None: as the model's folder says.
        """

    def measure(self, folder: Path) -> dict[str, float]:
        """Return the measures of the answers in a folder, such as refcoco-val/cIoU, in one process."""

    def close(self) -> None: ...


class Benchmarks:
    """The benchmarks of a run; none is opened where the run asks for none.

    Args:
        config: of the run.
        accelerator: of the run.

    Raises:
        UserError: a benchmark that does not exist, or no such split or data.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self._config = config
        self._accelerator = accelerator
        self._opened: Measuring | None = None
        if config.eval.benchmarks:
            self._opened = _open(config.eval.benchmarks, config.eval.answer_tokens)

    def is_due(self, step: int) -> bool:
        """Whether they are measured after `step` optimiser steps."""
        config = self._config
        return self._opened is not None and (step % config.eval.every == 0 or step == config.steps)

    def measure(self, step: int, loop: Step, recipe: Recipe, journal: Journal | None) -> None:
        """Measure the model after `step` optimiser steps. All processes have to call this.

        Neither weights nor random states change.

        Args:
            loop: the step, bare.
            recipe: of the shards.
            journal: in the main process.
        """
        assert self._opened is not None
        accelerator = self._accelerator
        folder = Path(self._config.output_dir) / FOLDER / f"step-{step:06d}"
        opened = self._opened

        def start() -> None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, whose weights may have been others
            folder.mkdir(parents=True)

        decided_by_main(accelerator, start)
        loaded = LoadedModel(loop.model, ModelInfo(recipe=recipe))
        half = self._config.mixed_precision == "bf16"

        def answer() -> None:
            frames = frames_shown(self._config)
            with fsdp.whole(loop, accelerator), _undisturbed(loop, accelerator):
                opened.answer(loaded, folder, half, frames if frames > 1 else None)

        with evaluating(loop), uncompiled(loop.model):
            loop.call(answer)
        accelerator.wait_for_everyone()
        values = decided_by_main(accelerator, lambda: opened.measure(folder))
        if journal:
            journal.benchmarks(step, values)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def _open(entries: Sequence[BenchmarkConfig], answer_tokens: int) -> Measuring:
    module, _, name = HOOK.partition(":")
    opened: Measuring = getattr(import_module(module), name)(entries, answer_tokens)
    return opened


@contextmanager
def _undisturbed(loop: Step, accelerator: Accelerator) -> Iterator[None]:
    """Make SAM 2 float32, which prediction needs. Put back its tensors, which DDP knows, and random states."""
    sam: nn.Module = loop.model.grounding_encoder
    parameters = [(parameter, parameter.data) for parameter in sam.parameters()]
    buffers = [(module, dict(module._buffers)) for module in sam.modules()]
    state = random_state(accelerator.device)
    try:
        for parameter, data in parameters:
            parameter.data = data.float()  # `Module.float` would shard those of FSDP again
        for module, of_module in buffers:
            floating = {name: b for name, b in of_module.items() if b is not None and b.is_floating_point()}
            module._buffers.update({name: buffer.float() for name, buffer in floating.items()})
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, of_module in buffers:
            module._buffers.update(of_module)
        set_random_state([state], 0, accelerator.device, 0)
