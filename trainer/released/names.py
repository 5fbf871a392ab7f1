"""The names of tensors in released folders, and which of them are fused there.

Each tensor of the model is one tensor of the file or a part of one. So missing, unexpected and misshapen tensors of a
file are known before a value is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_VISION = (
    (r"embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"encoder\.layer\.", "encoder.layers."),
    (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.([qk])_norm\.", r".attn.\1_norm."),
    (r"\.lambda_([12])$", r".ls\1"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
_INTERNLM2 = (
    (r"^lm_head\.", "output."),
    (r"^model\.embed_tokens\.", "model.tok_embeddings."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.[qkv]_proj\.", ".attention.wqkv."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
)
_SAM = (
    (
        r"^sam2_model\.memory_encoder\.fuser\.layers\.(\d+)\.gamma$",
        r"sam2_model.memory_encoder.fuser.layers.\1.g_weight",
    ),
)
_SECOND_DECODER = (
    # In this order: the first rule takes the name away that the second gives.
    (r"^sam2_model\.sam_mask_decoder\.", "sam2_model.sam_mask_decoder_modified."),
    (r"^original_mask_decoder\.", "sam2_model.sam_mask_decoder."),
)
"""Folders of Sa2VA-i hold the mask decoder that Sa2VA trained, and SAM 2's own."""
MODIFIED = "grounding_encoder.sam2_model.sam_mask_decoder_modified."
"""Names in a released folder that begin so say that it holds two mask decoders."""
ORIGINAL = "grounding_encoder.original_mask_decoder."
"""Names in the model of SAM 2's own mask decoder, where there are two."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file and the model's tensors in it."""

    name: str
    parts: tuple[str, ...]
    """Names in the model: one, or q, k and v."""
    shapes: tuple[tuple[int, ...], ...]
    groups: int
    """1: parts are joined along dimension 0. n: they are interleaved in n blocks, one per head of k and v."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:]) if len(self.parts) > 1 else self.shapes[0]

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Split the file's tensor into the model's: copies where there are several."""
        if len(self.parts) == 1:
            return {self.parts[0]: tensor}
        sizes = [shape[0] // self.groups for shape in self.shapes]
        blocks = tensor.view(self.groups, sum(sizes), *tensor.shape[1:]).split(sizes, 1)
        pieces = zip(self.parts, blocks, self.shapes, strict=True)
        # Copies, so that no part keeps the memory of all alive, and each can be saved alone.
        copies = torch.contiguous_format
        return {part: block.clone(memory_format=copies).reshape(shape) for part, block, shape in pieces}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join the model's tensors to the file's."""
        if len(self.parts) == 1:
            return tensors[self.parts[0]]
        blocks = [tensors[part].view(self.groups, -1, *tensors[part].shape[1:]) for part in self.parts]
        return torch.cat(blocks, 1).reshape(self.shape)


def plan(shapes: Mapping[str, Sequence[int]], *, internlm2: bool, kv_heads: int) -> list[Stored]:
    """Return the tensors that a released folder holds for a model whose tensors have these shapes."""
    stored: dict[str, list[str]] = {}
    two_decoders = any(name.startswith(ORIGINAL) for name in shapes)
    for name in shapes:
        stored.setdefault(released_name(name, internlm2=internlm2, two_decoders=two_decoders), []).append(name)
    for parts in stored.values():
        parts.sort(key=_order)
    return [
        Stored(
            name,
            tuple(parts),
            tuple(tuple(shapes[part]) for part in parts),
            groups=kv_heads if len(parts) > 1 and name.startswith("language_model.") else 1,
        )
        for name, parts in stored.items()
    ]


def _order(name: str) -> int:
    """Return the place of a part in a fused tensor: q, k, v."""
    match = re.search(r"\.([qkv])_proj\.", name)
    return "qkv".index(match[1]) if match else 0


def released_name(name: str, *, internlm2: bool = False, two_decoders: bool = False) -> str:
    """Return the name in a released folder of the tensor that holds the model's tensor `name`.

    Args:
        name: in the model's `state_dict`.
        internlm2: whether its language model is an InternLM2.
        two_decoders: whether it has SAM 2's own mask decoder beside the trained one.
    """
    part, _, rest = name.partition(".")
    sam = (*_SAM, *_SECOND_DECODER) if two_decoders else _SAM
    rules = {"vision_model": _VISION, "grounding_encoder": sam, "language_model": _INTERNLM2 if internlm2 else ()}
    for pattern, new in rules.get(part, ()):
        rest = re.sub(pattern, new, rest)
    return f"{part}.{rest}"
