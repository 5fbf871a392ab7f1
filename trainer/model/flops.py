"""Floating point operations of a training step, and the peak operations per second of a GPU.

Counted are the matrix products and convolutions that the objective needs; a multiplication with its addition counts 2.
Recomputation by gradient checkpointing, padding and the optimiser do not count. This is the definition of model FLOPs
utilisation (PaLM, Chowdhery et al. 2022, appendix B).

- Language model: 2 per weight and token forward, 2 for the gradient of the input, and 2 for the gradient of the weight
  where it trains. So a frozen weight below adapters counts 4 in all, one that trains 6. The teacher's captions count
  forward alone: what the questions about a picture share once, the rest of each, then each generated token.
- Attention: 4 x heads x head width x layers for each pair of a token and a token of its row, three times that with
  gradients. The causal mask does not halve it, as in PaLM.
- Output head: each position at which a token is predicted. Projector: 256 tokens per picture and call.
- Vision tower, SAM 2's image encoder and mask decoder: PyTorch's flop counter on one picture and one object, attention
  included. Three times that where they train, twice where gradients only pass through the mask decoder. Frozen
  encoders count forward alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig

from trainer.model.architecture import VISION_SIZE
from trainer.model.counting import Counts
from trainer.model.grounding import IMAGE_SIZE
from trainer.model.prompts import IMAGE_TOKENS
from trainer.model.sa2va import Sa2VA

# Name, bfloat16 and float32 peak in operations per second, from NVIDIA's data sheets: dense; bfloat16 with float32 sums
# on tensor cores, float32 outside of them (PyTorch leaves TF32 off). The first name within the device's name counts.
_PEAKS = (
    ("B200", 2250e12, 75e12),
    ("H200", 989.4e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989.4e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A40", 149.7e12, 37.4e12),
    ("A10", 125e12, 31.2e12),
    ("RTX 6000 Ada", 364.2e12, 91.1e12),
    ("RTX A6000", 154.8e12, 38.7e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)


def peak_of(device: torch.device, mixed_precision: str) -> float | None:
    """Peak operations per second of a device in bfloat16 ("bf16") or float32; None where unknown."""
    return peak_named(torch.cuda.get_device_name(device), mixed_precision) if device.type == "cuda" else None


def peak_named(device_name: str, mixed_precision: str) -> float | None:
    """Peak operations per second of the device with this name; see `peak_of`."""
    words = f" {device_name} ".replace("-", " ")
    for name, bf16, float32 in _PEAKS:
        if f" {name} " in words:
            return bf16 if mixed_precision == "bf16" else float32
    return None


@dataclass(frozen=True)
class Costs:
    """Operations per unit of each kind of work (see `Counts`), in the forward pass and in the backward pass."""

    forward: dict[str, float]
    backward: dict[str, float]

    def of(self, counts: Counts) -> Tensor:
        """() float32: operations of the work that was counted."""
        operations = [
            amount * (self.forward[kind] + (self.backward[kind] if with_gradient else 0.0))
            for (kind, with_gradient), amount in counts.amounts.items()
        ]
        return torch.as_tensor(sum(operations), dtype=torch.float32)


def costs_of(model: Sa2VA) -> Costs:
    """Costs of a model whose trainable parameters are chosen and whose weights are not sharded."""
    language = model.language_model
    sam = model.grounding_encoder.sam2_model
    # No gradient passes through the language model where nothing in it or before it trains.
    gradient_passes = _trains(language) or _trains(model.mlp1) or _trains(model.vision_model)
    tokens = _linear_costs(language.model, gradient_passes)
    logits = _linear_costs(language.lm_head, gradient_passes)
    projected = _linear_costs(model.mlp1, _trains(model.mlp1) or _trains(model.vision_model))
    attention = _attention_cost(language.config)
    image, sam_image, masks = _counted_costs(model)
    return Costs(
        {
            "vision_model": image,
            "sam_image_encoder": sam_image,
            "sam_mask_decoder": masks,
            "language_model": tokens[0],
            "attention": attention,
            "lm_head": logits[0],
            "mlp1": IMAGE_TOKENS * projected[0],
        },
        {
            "vision_model": 2 * image * _trains(model.vision_model),
            "sam_image_encoder": 2 * sam_image * _trains(sam.image_encoder),
            "sam_mask_decoder": masks * (1 + _trains(sam.sam_mask_decoder)),
            "language_model": tokens[1],
            "attention": 2 * attention * gradient_passes,
            "lm_head": logits[1],
            "mlp1": IMAGE_TOKENS * projected[1],
        },
    )


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _linear_costs(module: nn.Module, gradient_passes: bool) -> tuple[float, float]:
    """Operations per token, forward and backward, of the linear layers in `module`."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    total = float(sum(weight.numel() for weight in weights))
    training = float(sum(weight.numel() for weight in weights if weight.requires_grad))
    return 2 * total, 2 * total * gradient_passes + 2 * training


def _attention_cost(config: PretrainedConfig) -> float:
    """Operations of the forward pass per pair of a token and a token of its row."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 4.0 * heads * width * config.num_hidden_layers


def _counted_costs(model: Sa2VA) -> tuple[float, float, float]:
    """Operations of the forward pass per picture of the vision tower and of SAM 2's image encoder, and per mask."""
    picture = torch.zeros(1, 3, VISION_SIZE, VISION_SIZE, device=model.device)
    sam_picture = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8).to(model.device)
    image = _operations(lambda: model.encode_image(picture))
    sam_image = _operations(lambda: model.encode_sam(sam_picture))
    return image, sam_image, _operations(lambda: _decode_one(model, sam_picture)) - sam_image


def _decode_one(model: Sa2VA, sam_picture: Tensor) -> None:
    encoder = model.grounding_encoder
    embedding = torch.zeros(1, encoder.width, device=sam_picture.device)
    image_of_object = torch.zeros(1, dtype=torch.int64, device=sam_picture.device)
    encoder.decode(model.encode_sam(sam_picture), image_of_object, embedding)


def _operations(run: Callable[[], object]) -> float:
    """Operations of `run`, which is traced without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),  # the counter does not know all kernels of attention
        FlopCounterMode(display=False) as counter,
    ):
        run()
    return float(counter.get_total_flops())
