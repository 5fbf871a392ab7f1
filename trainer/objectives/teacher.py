"""The teacher: an exponential moving average of the student, which writes the pseudo captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.profiler import record_function

from trainer import fsdp
from trainer.model.captioner import Captioner
from trainer.model.generation import Answers
from trainer.model.sa2va import Sa2VA
from trainer.modes import evaluating
from trainer.stopwatch import Stopwatch


class Teacher:
    """Holds a float32 copy (`shadow`) of the student's trainable tensors; frozen ones are shared with the student.

    A bfloat16 copy would never move: at decay 0.999 an update is smaller than half of its last bit. This is not a
    module, so that DDP neither averages nor broadcasts it: every process makes the same updates.
    """

    def __init__(self, model: Sa2VA, decay: float) -> None:
        """`model` is on its device, with its trainable parameters chosen; `decay` is per update."""
        self.decay = decay
        self._captioner = Captioner(model)
        self.writing = Stopwatch()
        """Time of `generate`."""
        self.reset(self._captioner)

    def reset(self, module: nn.Module) -> None:
        """Copy the student anew, whose parameters may have been replaced or sharded.

        Args:
            module: holds the student as its `model`.
        """
        self._module = module
        self._student = {n: p for n, p in fsdp.resharded(module).named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().to(torch.float32, copy=True) for n, p in self._student.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move by 1 - decay towards the student. To be called once after each optimiser step."""
        for name, parameter in self._student.items():
            fsdp.local_shard(self.shadow[name]).lerp_(fsdp.local_shard(parameter).float(), 1 - self.decay)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Answers:
        """Run `Captioner.forward` with the teacher's weights, without dropout."""
        captions: Answers
        model = self._captioner.model
        with evaluating(model), self.writing.running(model.device), record_function("captions"):
            if fsdp.is_sharded(self._module):  # its layers gather the student's weights by themselves
                with fsdp.swapped_in(self._module, self._student, self.shadow):
                    captions = self._captioner(*args, **kwargs)
            else:
                weights = {n: self.shadow[n].to(p.dtype) for n, p in self._student.items()}
                captions = functional_call(self._captioner, weights, args, kwargs)
        return captions
