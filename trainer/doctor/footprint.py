"""Sizes of a run's model, counted from shapes and types before any weight is loaded."""

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

_FLOAT32_BYTES = 4
_LAYER_VALUES = 17


@dataclass(frozen=True)
class Footprint:
    """What a run's model needs in memory and on disk."""

    parameters: int
    trainable: dict[str, int]
    """Parameters that train, by part."""
    frozen_bytes: dict[str, int]
    """Bytes of the weights that do not train, by type."""
    trainable_bytes: int
    """Bytes of the weights that train, which are float32."""
    new_bytes: int
    """Bytes that a checkpoint holds besides: frozen tensors that no file holds."""
    layers: int
    """Layers of the language model."""
    width: int
    """Width of its states."""
    vocabulary: int
    """Tokens that it knows."""

    def memory(self, processes: int, project: bool = False, optimizer: str = "adamw") -> dict[str, int]:
        """Return the bytes of a process by purpose, without activations and what libraries take for themselves.

        Args:
            processes: number of processes; with more than one, DDP has buckets.
            project: as in the configuration; with it, two more gradients are held.
            optimizer: as in the configuration.
        """
        trainable = self.trainable_bytes
        moments = 2 * trainable
        if optimizer == "adamw8bit":
            moments = moments * (256 + 4) // (4 * 256)  # a byte per value, and a float32 scale per 256 values
        parts = {f"frozen weights ({dtype})": size for dtype, size in self.frozen_bytes.items()}
        parts |= {"trainable weights": trainable, "gradients": trainable, "AdamW": moments, "teacher": trainable}
        parts |= {"projection": 2 * trainable} if project else {}
        return parts | ({"DDP's buckets": trainable} if processes > 1 else {})

    def activations(self, tokens: int, trained: int, config: Config) -> int:
        """Return about how many bytes the language model keeps from the forward to the backward pass.

        A layer keeps 17 values per token and unit of its width (Korthikanti et al. 2022, without attention scores,
        which are never stored), with gradient checkpointing its input alone, but for the layer that is computed again.
        Logits and their gradient are float32, of the `trained` tokens alone.
        """
        value = 2 if config.mixed_precision == "bf16" else _FLOAT32_BYTES
        kept = self.layers + _LAYER_VALUES if config.gradient_checkpointing else self.layers * _LAYER_VALUES
        return tokens * self.width * kept * value + 2 * trained * self.vocabulary * _FLOAT32_BYTES

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: weights, the teacher's, and AdamW's two moments."""
        return 4 * self.trainable_bytes + self.new_bytes


def measure_footprint(config: Config) -> Footprint:
    """Build the model of `config` on the meta device, reading the headers of weights in files, and add up its sizes.

    Raises:
        UserError: what loading the model would raise.
    """
    with init_empty_weights(include_buffers=False), _StayEmpty():
        base = base_model(config.model, "meta")
        model = base.model
        trainable = set_trainable(model, config.trainable, **asdict(config.lora))
    frozen_bytes: dict[str, int] = {}
    trainable_bytes = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            trainable_bytes += parameter.numel() * _FLOAT32_BYTES
        else:
            name = str(parameter.dtype).removeprefix("torch.")
            frozen_bytes[name] = frozen_bytes.get(name, 0) + parameter.nbytes
    kept = sum(tensor.nbytes for tensor in trained_tensors(model, base.new).values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    language = model.language_model.config
    return Footprint(
        parameters=parameters,
        trainable=trainable,
        frozen_bytes=frozen_bytes,
        trainable_bytes=trainable_bytes,
        new_bytes=max(0, kept - trainable_bytes),
        layers=language.num_hidden_layers,
        width=language.hidden_size,
        vocabulary=language.vocab_size,
    )


class _StayEmpty(TorchFunctionMode):
    """Leave a tensor without data where it is when it is moved to a device, as SAM 2's own builder does."""

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
