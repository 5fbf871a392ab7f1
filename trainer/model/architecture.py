"""What a Sa2VA is made of, as the `config.json` of the released folders says it, and sizes under a name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import InternVLVisionConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from shards.errors import UserError

VISION_SIZE, GRID = 448, 16
_Config = TypeVar("_Config", bound=PretrainedConfig)


@dataclass(frozen=True)
class Sam:
    """A size of SAM 2."""

    sam_config: str
    """A configuration inside the `sam2` package."""
    sam_overrides: tuple[str, ...] = ()
    """Hydra overrides of it."""


def tiny_sam(width: int) -> Sam:
    """Hiera with the fewest blocks and thin ones; it takes 1024 x 1024 like the real one. `width`: of prompt tokens."""
    trunk, memory = "model.image_encoder.trunk", "model.memory_encoder"
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
"""Width of the first stage and number of blocks, by size."""
_WIDEST = 256
"""Width of SAM 2's prompt tokens: that of the released ones."""
LARGE_SAM = Sam("configs/sam2/sam2_hiera_l.yaml")  # in all released models
SAM_21_ONLY = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")
"""What SAM 2.1 has and SAM 2 has not; only tracking uses it."""


def sam_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> Sam:
    """The SAM 2 or 2.1 whose tensors, by their names in the `sam2` package, have these shapes.

    Raises:
        UserError: none has.
    """
    trunk = "image_encoder.trunk."
    if not (width := _first(shapes, f"{trunk}patch_embed.proj.weight")):
        met = ", ".join([*shapes][:3]) or "no tensor of it"
        raise UserError("no SAM 2 among the tensors", where=where, met=met, wanted=f"{trunk}patch_embed.proj.weight")
    blocks = {name.removeprefix(f"{trunk}blocks.").split(".")[0] for name in shapes if f"{trunk}blocks." in name}
    if (width, len(blocks)) == (8, 4):
        return tiny_sam(min(_first(shapes, "image_encoder.neck.convs.0.conv.weight") or 32, _WIDEST))
    if (width, len(blocks)) not in _HIERA:
        met = f"a Hiera of width {width} with {len(blocks)} blocks"
        wanted = ", ".join(f"{size}: {w} with {b}" for (w, b), size in _HIERA.items())
        raise UserError("no SAM 2 that is known", where=where, met=met, wanted=wanted)
    size = _HIERA[width, len(blocks)]
    return Sam(
        f"configs/sam2.1/sam2.1_hiera_{size}.yaml"
        if SAM_21_ONLY[0] in shapes
        else f"configs/sam2/sam2_hiera_{size}.yaml"
    )


def _first(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """The first size of a tensor; 0 where it is not there or has none."""
    return (shapes.get(name) or (0,))[0]


@dataclass(frozen=True)
class Architecture:
    """A model's configuration.

    Raises:
        UserError: from its properties, where the configuration asks for what this Sa2VA is not.
    """

    config: dict[str, Any]
    """In the form of the released `config.json`."""
    sam: Sam
    where: str = "the preset"
    """Where `config` was read, for messages."""

    def _refuse(self, key: str, met: object, wanted: str) -> UserError:
        do = "this Sa2VA joins InternVL at 448 x 448 with SAM 2"
        return UserError("not supported", where=f"{self.where}, {key}", met=repr(met), wanted=wanted, do=do)

    def check(self) -> None:
        """Raise `UserError` where tensors would fit and numbers would not."""
        fixed = {"force_image_size": 448, "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1}
        for key, wanted in fixed.items():
            if self.config.get(key, wanted) != wanted:
                raise self._refuse(key, self.config[key], repr(wanted))
        for key in ("use_llm_lora", "use_backbone_lora"):
            if self.config.get(key):
                raise self._refuse(key, self.config[key], "0: adapters merged into the weights")

    @property
    def vision(self) -> InternVLVisionConfig:
        """Of transformers' `InternVLVisionModel`."""
        given = self._section("vision_config")
        if given.get("image_size", VISION_SIZE) != VISION_SIZE or given.get("patch_size", 14) != 14:
            met = (given.get("image_size"), given.get("patch_size"))
            raise self._refuse("vision_config.image_size and patch_size", met, "448 and 14")
        same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        return self._made(
            InternVLVisionConfig,
            "vision_config",
            **options,
            **{key: given[key] for key in (*same, "layer_norm_eps", "norm_type", "initializer_range") if key in given},
            image_size=VISION_SIZE,
            patch_size=14,
            attention_bias=given.get("qkv_bias", False),
            use_qk_norm=given.get("qk_normalization", True),
            layer_scale_init_value=given.get("initializer_factor", 0.1),
            use_absolute_position_embeddings=True,
            use_mask_token=False,
        )

    @property
    def language(self) -> PretrainedConfig:
        """Of transformers' Qwen2, Qwen3 or (for InternLM2) Llama."""
        # A copy of all levels: transformers writes into the rope scaling that it is given.
        given = {k: v for k, v in deepcopy(self._section("llm_config")).items() if "attn_implementation" not in k}
        kind = (given.pop("architectures", None) or ["?"])[0]
        given["tie_word_embeddings"] = False  # the file decides, see `trainer.released.folder`
        for key in ("auto_map", "model_type", "_name_or_path", "torch_dtype", "dtype", "transformers_version"):
            given.pop(key, None)
        if kind == "InternLM2ForCausalLM":
            given["attention_bias"] = given.pop("bias", True)  # InternLM2's own default
        elif kind not in LANGUAGE_MODELS:
            raise self._refuse(
                "llm_config.architectures", kind, " or ".join([*LANGUAGE_MODELS, "InternLM2ForCausalLM"])
            )
        return self._made(
            LANGUAGE_MODELS.get(kind, LlamaConfig), "llm_config", **given | {"attn_implementation": "sdpa"}
        )

    @property
    def is_internlm2(self) -> bool:
        """Whether the language model's tensors have InternLM2's names and fusion in files."""
        return bool(self._section("llm_config").get("architectures") == ["InternLM2ForCausalLM"])

    @property
    def template(self) -> str:
        return str(self.config.get("template") or "").replace("-", "_")

    def _made(self, kind: type[_Config], section: str, **values: Any) -> _Config:
        try:
            return kind(**values)
        except Exception as error:  # transformers checks values in its own ways
            met = " ".join(str(error).split())[:200]
            where, wanted = f"{self.where}, {section}", kind.__name__
            raise UserError("not a configuration", where=where, met=met, wanted=wanted) from None

    def _section(self, key: str) -> dict[str, Any]:
        if not isinstance(section := self.config.get(key), dict):
            raise self._refuse(key, section, "a JSON object")
        return section


LANGUAGE_MODELS: dict[str, type[PretrainedConfig]] = {
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "LlamaForCausalLM": LlamaConfig,
}


def sa2va_config(vision: dict[str, Any], language: dict[str, Any], template: str) -> dict[str, Any]:
    """A released `config.json` around the two inner configurations."""
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
_INTERNLM2, _QWEN2 = "InternLM2ForCausalLM", "Qwen2ForCausalLM"
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
    """Raise `UserError` where there is no such preset."""
    if name not in PRESETS:
        raise UserError("unknown preset", where="model.preset", met=name, wanted=" or ".join(PRESETS))
    return PRESETS[name]
