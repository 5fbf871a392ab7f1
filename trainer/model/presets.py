"""Sizes of a model under a name. All weights are random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.errors import UserError


@dataclass(frozen=True)
class Preset:
    vision: dict[str, Any]
    """For transformers' `InternVLVisionConfig`."""
    language: dict[str, Any]
    """For transformers' `Qwen2Config`."""
    sam_config: str
    """A configuration inside the `sam2` package."""
    sam_overrides: tuple[str, ...] = ()
    """Hydra overrides of it."""
    template: str = "qwen_chat"


_TINY_SAM_WIDTH = 32
# Hiera with the fewest blocks and thin ones; it takes 1024 x 1024 like the real one.
_TINY_SAM = (
    "model.image_encoder.trunk.embed_dim=8",
    "model.image_encoder.trunk.num_heads=1",
    "model.image_encoder.trunk.stages=[1,1,1,1]",
    "model.image_encoder.trunk.global_att_blocks=[]",
    "+model.image_encoder.trunk.window_spec=[8,4,16,8]",
    "model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    f"model.image_encoder.neck.d_model={_TINY_SAM_WIDTH}",
    f"model.image_encoder.neck.position_encoding.num_pos_feats={_TINY_SAM_WIDTH}",
    "model.memory_attention.num_layers=1",
    f"model.memory_attention.d_model={_TINY_SAM_WIDTH}",
    f"model.memory_attention.layer.d_model={_TINY_SAM_WIDTH}",
    "model.memory_attention.layer.dim_feedforward=128",
    f"model.memory_attention.layer.self_attention.embedding_dim={_TINY_SAM_WIDTH}",
    f"model.memory_attention.layer.cross_attention.embedding_dim={_TINY_SAM_WIDTH}",
    "model.memory_attention.layer.cross_attention.kv_in_dim=16",
    "model.memory_encoder.out_dim=16",
    f"+model.memory_encoder.in_dim={_TINY_SAM_WIDTH}",
    "model.memory_encoder.position_encoding.num_pos_feats=16",
    f"+model.memory_encoder.mask_downsampler.embed_dim={_TINY_SAM_WIDTH}",
    f"model.memory_encoder.fuser.layer.dim={_TINY_SAM_WIDTH}",
)

PRESETS = {
    "tiny": Preset(
        vision={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "attention_bias": True,
            "layer_scale_init_value": 1.0,
            "initializer_range": 0.1,
        },
        language={
            "vocab_size": 272,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "initializer_range": 0.08,
        },
        sam_config="configs/sam2/sam2_hiera_t.yaml",
        sam_overrides=_TINY_SAM,
    ),
}


def preset_named(name: str) -> Preset:
    """Raise `UserError` where there is no such preset."""
    if name not in PRESETS:
        raise UserError("unknown preset", where="model.preset", met=name, wanted=" or ".join(PRESETS))
    return PRESETS[name]
