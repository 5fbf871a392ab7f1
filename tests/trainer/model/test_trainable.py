"""What trains and what is frozen."""

import pytest
import torch

from shards.errors import UserError
from trainer.config import Config
from trainer.model.sa2va import Sa2VA, build
from trainer.model.trainable import PARTS, by_part, set_trainable


def trained(model: Sa2VA, parts: list[str]) -> set[str]:
    set_trainable(model, parts, r=4, alpha=8, dropout=0.0)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_by_default_adapters_projector_seg_mlp_and_mask_decoder_train():
    model = build("tiny")
    names = trained(model, Config().trainable)
    starts = ("mlp1.", "text_hidden_fcs.", "grounding_encoder.sam2_model.sam_mask_decoder.", "language_model.")
    assert all(name.startswith(starts) for name in names)
    adapters = {name for name in names if name.startswith("language_model.")}
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = model.language_model.config.num_hidden_layers
    assert len(adapters) == layers * len(linears) * 2
    assert all(any(f"{linear}.lora_{ab}" in name for name in adapters) for linear in linears for ab in "AB")
    assert any("conv_s0" in name for name in names) and any("conv_s1" in name for name in names)


def test_a_new_adapter_does_not_change_the_output():
    model = build("tiny").eval()
    inputs = torch.randn(1, 6, model.embedding.embedding_dim)
    ones = torch.ones(1, 6, dtype=torch.long)
    order = torch.arange(6)[None]
    before = model.run_language_model(inputs, ones, order)
    set_trainable(model, ["lora"], r=4, alpha=8, dropout=0.5)
    assert torch.equal(model.eval().run_language_model(inputs, ones, order), before)


def test_parameters_that_no_loss_reaches_stay_frozen():
    names = trained(build("tiny"), ["sam_mask_decoder"])
    unreached = ("iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps.0.")
    assert not [name for name in names if any(part in name for part in unreached)]


def test_every_part_can_train_alone_and_its_size_is_reported():
    for part in PARTS:
        model = build("tiny")
        sizes = set_trainable(model, [part], r=4, alpha=8, dropout=0.0)
        assert sizes == {part: sum(p.numel() for p in model.parameters() if p.requires_grad)}
        assert sizes[part] > 0


def test_language_model_and_adapters_together():
    names = trained(build("tiny"), ["lora", "language_model"])
    assert any("lora_A" in n for n in names) and any("base_layer.weight" in n for n in names)
    assert "language_model.model.embed_tokens.weight" in names


def test_frozen_encoders_stay_in_evaluation_mode():
    model = build("tiny")
    set_trainable(model, ["mlp1"], r=4, alpha=8, dropout=0.0)
    model.train()
    assert model.mlp1.training and not model.vision_model.training
    assert not model.grounding_encoder.sam2_model.image_encoder.training
    set_trainable(model, ["vision_model"], r=4, alpha=8, dropout=0.0)
    assert model.vision_model.training


@pytest.mark.parametrize("parts", [["lora", "decoder"], []])
def test_an_unknown_part_is_refused(parts: list[str]):
    with pytest.raises(UserError, match="trainable: unknown part"):
        set_trainable(build("tiny"), parts, r=4, alpha=8, dropout=0.0)


@pytest.mark.parametrize("parts", [Config().trainable, ["token_embeddings", "language_model", "lora"], [*PARTS]])
def test_each_trainable_parameter_belongs_to_one_part(parts: list[str]):
    model = build("tiny")
    sizes = set_trainable(model, parts, r=4, alpha=8, dropout=0.0)
    found = by_part(model, parts)
    assert [*found] == parts
    flat = [parameter for parameters in found.values() for parameter in parameters]
    assert len({id(p) for p in flat}) == len(flat) == sum(p.requires_grad for p in model.parameters())
    assert sum(p.numel() for p in found["lora"]) == sizes["lora"]
    if parts == Config().trainable:
        assert {part: sum(p.numel() for p in parameters) for part, parameters in found.items()} == sizes
    else:  # what two parts hold belongs to the first
        assert any(p is model.embedding.weight for p in found["token_embeddings"])
        assert not any(p is model.embedding.weight for p in found["language_model"])
