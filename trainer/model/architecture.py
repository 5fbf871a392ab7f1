"""The configuration of a Sa2VA, as in the `config.json` of the released folders, and presets."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import InternVLVisionConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from shards.errors import UserError
from trainer.model.attention import IMPLEMENTATION

VISION_SIZE = 448
GRID = 16
_Config = TypeVar("_Config", bound=PretrainedConfig)


@dataclass(frozen=True)
class Sam:
    """A size of SAM 2."""

    sam_config: str
    """A configuration file of the `sam2` package."""
    sam_overrides: tuple[str, ...] = ()
    """Hydra overrides of that file."""


def tiny_sam(width: int) -> Sam:
    """Return a Hiera of four thin blocks, for 1024 x 1024 as the real ones. `width`: of prompt tokens."""
    trunk = "model.image_encoder.trunk"
    memory = "model.memory_encoder"
    layer = "model.memory_attention.layer"
    return Sam(
        "configs/sam2/sam2_hiera_t.yaml",
        (
            f"{trunk}.embed_dim=8",
            f"{trunk}.num_heads=1",
            f"{trunk}.stages=[1,1,1,1]",
            f"{trunk}.global_att_blocks=[]",
            f"+{trunk}.window_spec=[8,4,16,8]",
            "model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
            f"model.image_encoder.neck.d_model={width}",
            f"model.image_encoder.neck.position_encoding.num_pos_feats={width}",
            "model.memory_attention.num_layers=1",
            f"model.memory_attention.d_model={width}",
            f"{layer}.d_model={width}",
            f"{layer}.dim_feedforward=128",
            f"{layer}.self_attention.embedding_dim={width}",
            f"{layer}.cross_attention.embedding_dim={width}",
            f"{layer}.cross_attention.kv_in_dim={width // 2}",
            f"{memory}.out_dim={width // 2}",
            f"+{memory}.in_dim={width}",
            f"{memory}.position_encoding.num_pos_feats={width // 2}",
            f"+{memory}.mask_downsampler.embed_dim={width}",
            f"{memory}.fuser.layer.dim={width}",
        ),
    )


_HIERA = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
"""Size by width of the first stage and number of blocks."""
_WIDEST = 256
"""Width of the released SAM 2's prompt tokens."""
LARGE_SAM = Sam("configs/sam2/sam2_hiera_l.yaml")  # in all released models
SAM_21_ONLY = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")
"""Tensors of SAM 2.1 that SAM 2 lacks; for tracking alone."""


def sam_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> Sam:
    """Return the SAM 2 or 2.1 whose tensors, by their names in the `sam2` package, have these shapes.

    Raises:
        UserError: there is none.
    """
    trunk = "image_encoder.trunk."
    if not (width := _first(shapes, f"{trunk}patch_embed.proj.weight")):
        first = ", ".join([*shapes][:3]) or "no tensor of it"
        raise UserError("no SAM 2 among the tensors", where=where, met=first, wanted=f"{trunk}patch_embed.proj.weight")
    blocks = {name.removeprefix(f"{trunk}blocks.").split(".")[0] for name in shapes if f"{trunk}blocks." in name}
    if (width, len(blocks)) == (8, 4):
        return tiny_sam(min(_first(shapes, "image_encoder.neck.convs.0.conv.weight") or 32, _WIDEST))
    if (width, len(blocks)) not in _HIERA:
        raise UserError(
            "no SAM 2 that is known",
            where=where,
            met=f"a Hiera of width {width} with {len(blocks)} blocks",
            wanted=", ".join(f"{size}: {w} with {b}" for (w, b), size in _HIERA.items()),
        )
    size = _HIERA[width, len(blocks)]
    return Sam(
        f"configs/sam2.1/sam2.1_hiera_{size}.yaml"
        if SAM_21_ONLY[0] in shapes
        else f"configs/sam2/sam2_hiera_{size}.yaml"
    )


def _first(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Return the first size of a tensor; 0 where it is missing or has no dimension."""
    return (shapes.get(name) or (0,))[0]


@dataclass(frozen=True)
class Architecture:
    """The configuration of a model.

    Its properties raise `UserError` where it is not supported.
    """

    config: dict[str, Any]
    """The content of a released `config.json`."""
    sam: Sam
    where: str = "the preset"
    """The file of `config`, for messages."""

    def _unsupported(self, key: str, value: object, expected: str) -> UserError:
        do = "this Sa2VA joins InternVL at 448 x 448 with SAM 2"
        return UserError("not supported", where=f"{self.where}, {key}", met=repr(value), wanted=expected, do=do)

    def check(self) -> None:
        """Raise `UserError` for values with which the weights would load but compute something else."""
        fixed = {"force_image_size": 448, "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1}
        for key, expected in fixed.items():
            if self.config.get(key, expected) != expected:
                raise self._unsupported(key, self.config[key], repr(expected))
        for key in ("use_llm_lora", "use_backbone_lora"):
            if self.config.get(key):
                raise self._unsupported(key, self.config[key], "0: adapters merged into the weights")

    @property
    def vision(self) -> InternVLVisionConfig:
        """The configuration of transformers' `InternVLVisionModel`."""
        section = self._section("vision_config")
        sizes = (section.get("image_size"), section.get("patch_size"))
        if section.get("image_size", VISION_SIZE) != VISION_SIZE or section.get("patch_size", 14) != 14:
            raise self._unsupported("vision_config.image_size and patch_size", sizes, "448 and 14")
        same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        return self._made(
            InternVLVisionConfig,
            "vision_config",
            **options,
            **{
                key: section[key]
                for key in (*same, "layer_norm_eps", "norm_type", "initializer_range")
                if key in section
            },
            image_size=VISION_SIZE,
            patch_size=14,
            attention_bias=section.get("qkv_bias", False),
            use_qk_norm=section.get("qk_normalization", True),
            layer_scale_init_value=section.get("initializer_factor", 0.1),
            use_absolute_position_embeddings=True,
            use_mask_token=False,
        )

    @property
    def language(self) -> PretrainedConfig:
        """The configuration of transformers' Qwen2, Qwen3 or (for InternLM2) Llama."""
        # A deep copy: transformers writes into the rope scaling.
        values = {k: v for k, v in deepcopy(self._section("llm_config")).items() if "attn_implementation" not in k}
        kind = (values.pop("architectures", None) or ["?"])[0]
        values["tie_word_embeddings"] = False  # depends on the file, see `trainer.released.folder`
        for key in ("auto_map", "model_type", "_name_or_path", "torch_dtype", "dtype", "transformers_version"):
            values.pop(key, None)
        if kind == "InternLM2ForCausalLM":
            values["attention_bias"] = values.pop("bias", True)  # InternLM2's default
        elif kind not in LANGUAGE_MODELS:
            raise self._unsupported(
                "llm_config.architectures", kind, " or ".join([*LANGUAGE_MODELS, "InternLM2ForCausalLM"])
            )
        values["attn_implementation"] = IMPLEMENTATION
        return self._made(LANGUAGE_MODELS.get(kind, LlamaConfig), "llm_config", **values)

    @property
    def is_internlm2(self) -> bool:
        """Whether the files have InternLM2's names and fused tensors for the language model."""
        return bool(self._section("llm_config").get("architectures") == ["InternLM2ForCausalLM"])

    @property
    def template(self) -> str:
        """Name of the chat template, see `trainer.model.prompts.TEMPLATES`."""
        return str(self.config.get("template") or "").replace("-", "_")

    def _made(self, kind: type[_Config], section: str, **values: Any) -> _Config:
        try:
            return kind(**values)
        except Exception as error:  # transformers checks values in many ways
            reason = " ".join(str(error).split())[:200]
            where = f"{self.where}, {section}"
            raise UserError("not a configuration", where=where, met=reason, wanted=kind.__name__) from None

    def _section(self, key: str) -> dict[str, Any]:
        if not isinstance(section := self.config.get(key), dict):
            raise self._unsupported(key, section, "a JSON object")
        return section


LANGUAGE_MODELS: dict[str, type[PretrainedConfig]] = {
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "LlamaForCausalLM": LlamaConfig,
}


def sa2va_config(vision: dict[str, Any], language: dict[str, Any], template: str) -> dict[str, Any]:
    """Return the content of a released `config.json` with these two inner configurations."""
    return {
        "architectures": ["Sa2VAChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfig",
            "AutoModel": "modeling_sa2va_chat.Sa2VAChatModel",
            "AutoModelForCausalLM": "modeling_sa2va_chat.Sa2VAChatModel",
        },
        "model_type": "sa2va_chat",
        "vision_config": vision,
        "llm_config": language,
        "force_image_size": VISION_SIZE,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_llm_lora": 0,
        "use_backbone_lora": 0,
        "tie_word_embeddings": False,
    }


def _vision(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": VISION_SIZE,
        "patch_size": 14,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "qkv_bias": True,
        "qk_normalization": False,
        **more,
    }


def _language(kind: str, width: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    qwen = kind.startswith("Qwen")
    return {
        "architectures": [kind],
        "model_type": kind.removesuffix("ForCausalLM").lower(),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": 151679 if qwen else 92558,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6 if qwen else 1e-5,
        "rope_theta": 1e6,
        "rope_scaling": None if qwen else {"type": "dynamic", "factor": 2.0},
        "tie_word_embeddings": False,
        **({} if qwen else {"bias": False}),
        **more,
    }


_SMALL_TOWER = _vision(1024, 24, 16)  # InternViT-300M
_LARGE_TOWER = _vision(3200, 45, 25, norm_type="rms_norm", qkv_bias=False, qk_normalization=True)  # InternViT-6B
_TINY_TOWER = _vision(64, 2, 4, initializer_factor=1.0, initializer_range=0.1)
_TINY_LANGUAGE = {"vocab_size": 272, "max_position_embeddings": 2048, "rope_theta": 1e4, "initializer_range": 0.08}
_INTERNLM2 = "InternLM2ForCausalLM"
_QWEN2 = "Qwen2ForCausalLM"
# Sizes as in the configurations of InternVL 2.5 and 3.
_RELEASED = {
    "tiny": (_TINY_TOWER, _language(_QWEN2, 128, 2, 4, 2, 256, **_TINY_LANGUAGE), "qwen_chat", tiny_sam(32)),
    "sa2va-1b": (_SMALL_TOWER, _language(_QWEN2, 896, 24, 14, 2, 4864), "qwen_chat", LARGE_SAM),
    "sa2va-4b": (_SMALL_TOWER, _language(_QWEN2, 2048, 36, 16, 2, 11008), "phi3_chat", LARGE_SAM),
    "sa2va-8b": (_SMALL_TOWER, _language(_INTERNLM2, 4096, 32, 32, 8, 14336), "internlm2_chat", LARGE_SAM),
    "sa2va-26b": (_LARGE_TOWER, _language(_INTERNLM2, 6144, 48, 48, 8, 16384), "internlm2_chat", LARGE_SAM),
    "internvl3-2b": (_SMALL_TOWER, _language(_QWEN2, 1536, 28, 12, 2, 8960), "qwen_chat", LARGE_SAM),
    "internvl3-8b": (_SMALL_TOWER, _language(_QWEN2, 3584, 28, 28, 4, 18944), "qwen_chat", LARGE_SAM),
    "internvl3-14b": (_SMALL_TOWER, _language(_QWEN2, 5120, 48, 40, 8, 13824), "qwen_chat", LARGE_SAM),
}
PRESETS = {
    name: Architecture(sa2va_config(vision, language, template), sam)
    for name, (vision, language, template, sam) in _RELEASED.items()
}


def preset_named(name: str) -> Architecture:
    """Return a preset. Raises `UserError` where there is none of this name."""
    if name not in PRESETS:
        raise UserError("unknown preset", where="model.preset", met=name, wanted=" or ".join(PRESETS))
    return PRESETS[name]
