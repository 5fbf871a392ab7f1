"""Choose which parts of the model train; all others are frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from shards.errors import UserError
from trainer.model.sa2va import Sa2VA

PARTS = {
    "lora": "adapters in all seven linear layers of each block of the language model",
    "mlp1": "the projector",
    "text_hidden_fcs": "from the state of [SEG] to SAM 2's prompt token",
    "sam_mask_decoder": "SAM 2's mask decoder",
    "token_embeddings": "the token table and the output head: needed where [SEG] is new to the language model",
    "language_model": "all weights of the language model, token table and head among them",
    "vision_model": "the vision tower",
    "sam_image_encoder": "SAM 2's image encoder",
}
_LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# No loss reaches these parts of the mask decoder: only masks 1 to 3 are used, and the two scores have no loss.
# Trainable they would stop DDP, and weight decay would shrink them.
_UNREACHED = ("iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps.0")


def set_trainable(model: Sa2VA, parts: Sequence[str], *, r: int, alpha: int, dropout: float) -> dict[str, int]:
    """Freeze all but `parts` of `model`; "lora" puts adapters of rank `r` in.

    Trainable parameters become float32: a step of the optimiser is often smaller than bfloat16's last bit.

    Returns:
        The number of trainable parameters by part.

    Raises:
        UserError: an unknown part, or none.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        named = ", ".join(unknown) or "no part at all"
        raise UserError("unknown part", where="trainable", met=named, wanted=", ".join(PARTS))
    model.requires_grad_(False)
    modules = _modules(model)
    for part in parts:
        if part != "lora":
            modules[part].requires_grad_(True)
    for name in _UNREACHED:
        model.grounding_encoder.sam2_model.sam_mask_decoder.get_submodule(name).requires_grad_(False)
    counts = {part: _trainable(modules[part]) for part in parts if part != "lora"}
    if "lora" in parts:
        from peft import LoraConfig, inject_adapter_in_model  # imports for seconds

        config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=_LINEAR_LAYERS)
        before = {name for name, p in model.language_model.named_parameters() if p.requires_grad}
        inject_adapter_in_model(config, model.language_model)
        for name, parameter in model.language_model.named_parameters():
            parameter.requires_grad_("lora_" in name or name.replace(".base_layer", "") in before)
        counts["lora"] = sum(p.numel() for n, p in model.language_model.named_parameters() if "lora_" in n)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.train(model.training)  # which encoders stay in evaluation mode depends on what is frozen
    return counts


def by_part(model: Sa2VA, parts: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters by part, in the model's order; each belongs to the first part that holds it.

    Args:
        model: after `set_trainable`.
        parts: those of that call.
    """
    modules = _modules(model)
    held = {part: {id(p) for p in modules[part].parameters()} for part in parts if part != "lora"}
    found: dict[str, list[nn.Parameter]] = {part: [] for part in parts}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = "lora" if "lora_" in name else next(part for part, ids in held.items() if id(parameter) in ids)
            found[owner].append(parameter)
    return found


def _modules(model: Sa2VA) -> dict[str, nn.Module]:
    """Return the module of each part but the adapters."""
    sam = model.grounding_encoder.sam2_model
    return {
        "mlp1": model.mlp1,
        "text_hidden_fcs": model.text_hidden_fcs,
        "sam_mask_decoder": sam.sam_mask_decoder,
        "token_embeddings": nn.ModuleList([model.embedding, model.language_model.lm_head]),
        "language_model": model.language_model,
        "vision_model": model.vision_model,
        "sam_image_encoder": sam.image_encoder,
    }


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
