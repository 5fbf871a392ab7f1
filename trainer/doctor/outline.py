"""The model of a run without its weights: shapes and types alone, for what can be counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.config import Config
from trainer.model.trainable import set_trainable
from trainer.trained import base_model, trained_tensors

_FLOAT32 = 4


@dataclass(frozen=True)
class Outline:
    """What a run's model comes to."""

    parameters: int
    trainable: dict[str, int]
    """Parameters that train, by part."""
    frozen_bytes: dict[str, int]
    """Of what does not train, by type."""
    trainable_bytes: int
    """Weights that train, float32."""
    new_bytes: int
    """What a checkpoint holds beside: frozen tensors that no file holds."""

    def memory(self, processes: int, project: bool = False, optimizer: str = "adamw") -> dict[str, int]:
        """Bytes of a process, by purpose; without activations, and what libraries take for themselves.

        `project`, `optimizer`: as the configuration has them. With `project`, two more gradients stand beside the sum.
        """
        trainable = self.trainable_bytes
        moments = 2 * trainable if optimizer == "adamw" else 2 * trainable * (256 + 4) // (4 * 256)  # a scale a block
        parts = {f"frozen weights ({dtype})": size for dtype, size in self.frozen_bytes.items()}
        parts |= {"trainable weights": trainable, "gradients": trainable, "AdamW": moments, "teacher": trainable}
        parts |= {"projection": 2 * trainable} if project else {}
        return parts | ({"DDP's buckets": trainable} if processes > 1 else {})

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, the teacher's, and AdamW's two moments."""
        return 4 * self.trainable_bytes + self.new_bytes


def outline(config: Config) -> Outline:
    """Build the model of `config` on the meta device. Of weights in files, the headers are read.

    Raises:
        UserError: what loading the model would raise.
    """
    with init_empty_weights(include_buffers=False), _StayEmpty():
        base = base_model(config.model, "meta")
        model = base.model
        trainable = set_trainable(model, config.trainable, **asdict(config.lora))
    frozen: dict[str, int] = {}
    trains = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            trains += parameter.numel() * _FLOAT32
        else:
            name = str(parameter.dtype).removeprefix("torch.")
            frozen[name] = frozen.get(name, 0) + parameter.nbytes
    kept = sum(tensor.nbytes for tensor in trained_tensors(model, base.new).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    return Outline(total, trainable, frozen, trains, max(0, kept - trains))


class _StayEmpty(TorchFunctionMode):
    """Moving a tensor without data to a device, as SAM 2's own builder does, leaves it where it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.to and args[0].is_meta and isinstance((*args, None)[1], torch.device | str):
            dtype = args[2] if len(args) > 2 else (kwargs or {}).get("dtype")
            return args[0] if dtype is None else func(args[0], dtype)
        return func(*args, **(kwargs or {}))
