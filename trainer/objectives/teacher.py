"""The teacher: an exponential moving average of the student that writes the pseudo captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from trainer import fsdp
from trainer.model.captioner import Captioner
from trainer.model.generation import Answers
from trainer.model.sa2va import Sa2VA
from trainer.modes import evaluating


class Teacher:
    """A float32 shadow of the student's trainable tensors, and nothing else.

    Frozen tensors are the student's own. A bfloat16 shadow would never move: at decay 0.999 an update is smaller than
    half of its last bit. Not a module: DDP must neither average nor broadcast it, since every process makes the same
    updates from the same student.
    """

    def __init__(self, model: Sa2VA, decay: float) -> None:
        """`model` is on its device already, with its trainable parameters chosen."""
        self.decay = decay
        self._captioner = Captioner(model)
        self.follow(self._captioner)

    def follow(self, module: nn.Module) -> None:
        """Begin anew as the student is now, whose parameters may have become others, or shares.

        Args:
            module: that holds the student as its `model`.
        """
        self._module = module
        self._student = {n: p for n, p in fsdp.resharded(module).named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().to(torch.float32, copy=True) for n, p in self._student.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move by 1 - decay towards the student. To be called after an optimiser step, and only then."""
        for name, parameter in self._student.items():
            fsdp.local_shard(self.shadow[name]).lerp_(fsdp.local_shard(parameter).float(), 1 - self.decay)

    @torch.no_grad()
    def describe(self, *args: Any, **kwargs: Any) -> Answers:
        """`Captioner.forward` with the teacher's weights, without dropout."""
        captions: Answers
        with evaluating(self._captioner.model):
            if fsdp.is_sharded(self._module):  # its layers would fetch the student's weights, whatever they are given
                with fsdp.swapped_in(self._module, self._student, self.shadow):
                    captions = self._captioner(*args, **kwargs)
            else:
                weights = {n: self.shadow[n].to(p.dtype) for n, p in self._student.items()}
                captions = functional_call(self._captioner, weights, args, kwargs)
        return captions
