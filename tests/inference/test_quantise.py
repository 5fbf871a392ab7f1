"""int8 weights against numpy, their storage, and their effect on masks."""

import copy
import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from skimage import data
from torch import nn

from inference.compare_masks import Example, compare, iou, masks_of
from inference.quantise import (
    export_int8,
    is_quantised,
    load_quantised,
    quantise_language_model,
    save_quantised,
    tensors_of,
)
from shards import extras
from shards.errors import UserError
from trainer.model.captioner import Captioner
from trainer.model.sa2va import Sa2VA, build
from trainer.model.trainable import set_trainable
from trainer.released.folder import cast, load_model, save_model
from trainer.released.loaded import LoadedModel

TRUTH = np.zeros((512, 512), np.bool_)
TRUTH[100:300, 150:300] = True
EXAMPLES = [
    Example("astronaut", data.astronaut(), "The woman.", TRUTH),
    Example("coffee", data.coffee(), "the cup"),
]


@cache
def built() -> Sa2VA:
    torch.manual_seed(0)
    return build("tiny").eval().requires_grad_(False)


def make(dtype: torch.dtype = torch.float32) -> Sa2VA:
    return cast(copy.deepcopy(built()), dtype)


def by_numpy(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise float32 rows symmetrically, in numpy alone."""
    scale = (np.abs(weight).max(1, keepdims=True) / np.float32(127.5)).astype(np.float32)
    return np.clip(np.rint(weight * (np.float32(1) / scale)), -128, 127).astype(np.int8), scale


def linears(model: Sa2VA) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.language_model.named_modules() if isinstance(m, nn.Linear)}


def test_weights_are_those_of_numpy_and_the_layer_multiplies_by_them():
    model = make()
    original = make()
    quantise_language_model(model)
    expected = linears(original)
    assert len(expected) == 2 * 7 + 1 and "lm_head" in expected
    for name, layer in linears(model).items():
        whole, scale = by_numpy(expected[name].weight.numpy())
        assert np.array_equal(layer.weight.qdata.numpy(), whole) and np.array_equal(layer.weight.scale.numpy(), scale)
        states = torch.randn(5, whole.shape[1])
        by_hand = states.double().numpy() @ (whole.astype(np.float64) * scale).T
        if layer.bias is not None:
            by_hand += layer.bias.double().numpy()
        assert np.abs(layer(states).numpy() - by_hand).max() < 1e-4 * np.abs(by_hand).max()
        # Half a step, and another half where the largest value of a row is clipped to 127.
        off = np.abs(expected[name].weight.numpy() - whole * scale) / scale
        assert off.max() < 0.5001 and off.mean() > 0.2


def test_nothing_else_changes():
    model = make()
    original = make()
    quantise_language_model(model)
    taken = {f"language_model.{name}.weight" for name in linears(original)}
    state = model.state_dict()
    for name, tensor in original.state_dict().items():
        assert (name in taken) == hasattr(state[name], "qdata")
        if name not in taken:
            assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_those_of_the_files(tmp_path, dtype):
    model = make(dtype)
    save_model(model, tmp_path / "float")
    of_linears = sum(layer.weight.numel() for layer in linears(model).values())
    rows = sum(len(layer.weight) for layer in linears(model).values())
    sizes = quantise_language_model(model)
    before, after = sizes.language_model
    assert before - after == of_linears * (dtype.itemsize - 1) - 4 * rows
    whole = sizes.whole_model
    assert whole[0] - whole[1] == before - after
    save_quantised(model, tmp_path / "int8")
    for folder, size in zip(("float", "int8"), whole, strict=True):
        (file,) = (tmp_path / folder).glob("*.safetensors")
        assert 0 < file.stat().st_size - size < 200_000  # the header
    assert f"{after:,}" in sizes.table() and f"{after / before:.1%}" in sizes.table()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tmp_path, dtype):
    model = make(dtype)
    if dtype == torch.bfloat16:  # one of two mask decoders
        model.grounding_encoder.add_original_decoder().iou_token.weight.data += 1
    quantise_language_model(model)
    save_quantised(model, tmp_path / "int8", card="card")
    with safe_open(tmp_path / "int8" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert {name + "_int8", name + "_scale", "language_model.model.embed_tokens.weight"} < names and name not in names
    again = load_quantised(tmp_path / "int8")
    loaded = again.model
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters()) and not loaded.training
    actual = tensors_of(loaded)
    expected = tensors_of(model)
    assert actual.keys() == expected.keys() == names
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor) and actual[key].dtype == tensor.dtype, key
    assert np.array_equal(masks_of(again, EXAMPLES), masks_of(LoadedModel(model), EXAMPLES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captions_and_hidden_states_stay_close_in_both_dtypes(dtype):
    model = make(dtype)
    original = make(dtype)
    quantise_language_model(model)
    prompts = model.prompts
    rows = prompts.padded([prompts.describe("a", [3])], model.device, left=True)
    visual_tokens = model.encode_image(torch.zeros(1, 3, 448, 448, dtype=dtype))
    regions = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 0, :3] = True
    one = torch.tensor([0])
    embeddings = model.embed_rows(rows, visual_tokens, one, regions)
    actual, expected = (m.run_language_model(embeddings, rows.attention, rows.positions) for m in (model, original))
    assert actual.dtype == dtype and not torch.equal(actual, expected)
    assert (actual - expected).float().norm() < 0.05 * expected.float().norm()
    captions = Captioner(model)([prompts.describe("a", [3])], visual_tokens, one, regions, 4)
    assert captions.ids.shape == (1, 4)


def test_a_tied_head_stays_with_its_table(tmp_path):
    model = make()
    model.tie()
    quantise_language_model(model)
    assert not hasattr(model.language_model.lm_head.weight, "qdata")
    assert "language_model.lm_head.weight" not in tensors_of(model)
    save_quantised(model, tmp_path / "tied")
    loaded = load_quantised(tmp_path / "tied").model
    assert loaded.tied and loaded.language_model.lm_head.weight is loaded.embedding.weight
    assert torch.equal(loaded.embedding.weight, model.embedding.weight) and is_quantised(loaded)


def test_masks_before_and_after_are_compared():
    before = masks_of(LoadedModel(make()), EXAMPLES)
    assert before.shape == (2, 256, 256) and before.any() and not before.all()
    after = before.copy()
    after[0, :128] = False
    first, second = compare(EXAMPLES, before, after).examples
    truth = TRUTH[1::2, 1::2]
    assert first.agreement == before[0, 128:].sum() / before[0].sum()
    assert first.before == (truth & before[0]).sum() / (truth | before[0]).sum() and first.before != first.after
    assert (second.agreement, second.before, second.after) == (1, None, None)
    table = compare(EXAMPLES, before, after).table().splitlines()
    assert [line.split()[0] for line in table[1:]] == ["astronaut", "coffee", "mean"]
    assert f"{first.after - first.before:+.4f}" in table[1] and f"{(first.agreement + 1) / 2:.4f}" in table[3]
    nothing = np.zeros((4, 4), np.bool_)
    assert iou(nothing, nothing) == 1 and iou(nothing, ~nothing) == 0
    with pytest.raises(UserError, match="no examples"):
        compare([], before[:0], before[:0])


def test_the_export_reports_its_changes(tmp_path):
    report = export_int8(LoadedModel(make()), tmp_path / "int8", EXAMPLES, "the card")
    assert "language model" in report and "astronaut" in report and "truth/after" in report
    assert (tmp_path / "int8" / "README.md").read_text() == "the card"
    assert is_quantised(load_quantised(tmp_path / "int8").model)


def test_mistakes_end_in_one_line(tmp_path, monkeypatch):
    model = make()
    with pytest.raises(UserError, match="not int8; call quantise_language_model"):
        save_quantised(model, tmp_path / "a")
    quantise_language_model(model)
    with pytest.raises(UserError, match="int8 already"):
        quantise_language_model(model)
    save_quantised(model, tmp_path / "a")
    with pytest.raises(UserError, match="there is something already"):
        save_quantised(model, tmp_path / "a")
    with pytest.raises(UserError, match="model_type: not a Sa2VA; met 'sa2va_chat_int8'"):
        load_model(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["llm_config"]["num_hidden_layers"] = 3
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_hidden_layers: another size than that of the weights; met 3; wanted 2"):
        load_quantised(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"model_type": "sa2va_chat"}))
    with pytest.raises(UserError, match="not an int8 Sa2VA; met 'sa2va_chat'; wanted sa2va_chat_int8"):
        load_quantised(tmp_path / "b")
    adapted = make()
    set_trainable(adapted, ["lora"], r=2, alpha=4, dropout=0.0)
    with pytest.raises(UserError, match="adapters in the language model; merge them"):
        quantise_language_model(adapted)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'a package is missing; met no torchao; pip install "sa2va-shards\[deploy\]"'):
        quantise_language_model(make())
