"""Floating point operations of the model, counted as it works, and what a GPU could do.

Counted are the products of matrices and convolutions that the objective asks for, two operations a multiplication with
its addition, whatever the kernels do besides: activations that gradient checkpointing computes again, padding and
optimiser do not count. (That is what makes it MODEL flops utilisation: PaLM, Chowdhery et al. 2022, appendix B.)

- A weight of the language model counts 2 a token forward. Backward it counts 2 a token for the gradient of what went
  in, and 2 more for its own gradient where it trains: a frozen weight under adapters counts 4 in all, one that trains
  6. The teacher's captions count forward alone: the question's tokens once, then each token that is written.
- Attention counts 4 x heads x width of a head x layers for each token and each token that it may look at or not
  (without taking half for the causal mask, as PaLM does), three times that where gradients flow.
- The output head counts where a token is predicted, the projector for 256 tokens a picture each time it is passed.
- Vision tower, SAM 2's image encoder and its mask decoder are counted operation by operation on one picture and one
  object without memory (PyTorch's flop counter), attention included; three times that where they train, twice where
  gradients only pass through the decoder. Frozen encoders count forward alone, once a picture and step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.model.architecture import VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE
from trainer.model.prompts import IMAGE_TOKENS
from trainer.model.sa2va import Sa2VA
from trainer.model.work import Work

# Dense peaks of NVIDIA's data sheets, without sparsity, in operations a second: bfloat16 with float32 sums on tensor
# cores, float32 outside of them (PyTorch leaves TF32 off). The first name that the device's name holds counts.
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
    """Operations a second that a device could do in bfloat16 ("bf16") or float32; None: not known."""
    return peak_named(torch.cuda.get_device_name(device), mixed_precision) if device.type == "cuda" else None


def peak_named(device_name: str, mixed_precision: str) -> float | None:
    """`peak_of` a device of this name."""
    words = f" {device_name} ".replace("-", " ")
    for name, bf16, float32 in _PEAKS:
        if f" {name} " in words:
            return bf16 if mixed_precision == "bf16" else float32
    return None


@dataclass(frozen=True)
class Costs:
    """Operations of each kind of work, forward alone and backward where gradients flow."""

    forward: dict[str, float]
    backward: dict[str, float]

    def of(self, work: Work) -> Tensor:
        """() float32: operations of the work that was counted."""
        each = [
            amount * (self.forward[kind] + (self.backward[kind] if with_gradient else 0.0))
            for (kind, with_gradient), amount in work.amounts.items()
        ]
        return torch.as_tensor(sum(each), dtype=torch.float32)


def costs_of(model: Sa2VA) -> Costs:
    """What a model costs whose trainable parameters are chosen and whose weights are whole."""
    language, config = model.language_model, model.language_model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 4.0 * heads * width * config.num_hidden_layers
    # Nothing below the language model, nor in it: then no gradient passes it.
    passed = any(p.requires_grad for part in (language, model.mlp1, model.vision_model) for p in part.parameters())
    sam = model.grounding_encoder.sam2_model
    device = model.device
    picture = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    seen = _counted(lambda: model.encode_image(torch.zeros(1, 3, VISION_SIZE, VISION_SIZE, device=device)))
    looked = _counted(lambda: model.encode_sam(picture.to(device)))
    pointed = _counted(lambda: _point_out(model, picture.to(device))) - looked
    read, read_back = _linear(language.model, passed)
    said, said_back = _linear(language.lm_head, passed)
    projected, projected_back = _linear(model.mlp1, _trains(model.mlp1) or _trains(model.vision_model))
    return Costs(
        {
            "seen": seen,
            "looked": looked,
            "pointed": pointed,
            "read": read,
            "attended": attention,
            "said": said,
            "projected": IMAGE_TOKENS * projected,
        },
        {
            "seen": 2 * seen * _trains(model.vision_model),
            "looked": 2 * looked * _trains(sam.image_encoder),
            "pointed": pointed * (1 + _trains(sam.sam_mask_decoder)),
            "read": read_back,
            "attended": 2 * attention * passed,
            "said": said_back,
            "projected": IMAGE_TOKENS * projected_back,
        },
    )


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _linear(module: nn.Module, passed: bool) -> tuple[float, float]:
    """Operations a token, forward and backward, of the linear layers below `module`."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    all_of_them = float(sum(w.numel() for w in weights))
    training = float(sum(w.numel() for w in weights if w.requires_grad))
    return 2 * all_of_them, 2 * all_of_them * passed + 2 * training


def _point_out(model: Sa2VA, picture: Tensor) -> None:
    encoder = model.grounding_encoder
    one = torch.zeros(1, encoder.width, device=picture.device)
    encoder.decode(model.encode_sam(picture), torch.zeros(1, dtype=torch.int64, device=picture.device), one)


def _counted(run: Callable[[], object]) -> float:
    """Operations of what `run` does, without doing it."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which is for those that count

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),  # the counter does not know all kernels of attention
        FlopCounterMode(display=False) as counter,
    ):
        run()
    return float(counter.get_total_flops())
