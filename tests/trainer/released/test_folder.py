"""Reading and writing released folders."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam2.build_sam import build_sam2

from shards.errors import UserError
from trainer.model.adapters import merge_adapters
from trainer.model.architecture import Architecture, preset_named, sa2va_config
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA, build
from trainer.model.tokenizer import ADDED, byte_tokenizer
from trainer.model.trainable import set_trainable
from trainer.released.folder import load_model, load_original_decoder, load_parts, load_parts_prompts, save_model
from trainer.released.loaded import ModelInfo

KINDS = {
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "head_dim": 16},
    "InternLM2ForCausalLM": {
        "model_type": "internlm2",
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}


def random_model(kind: str, seed: int = 0, **vision: Any) -> Sa2VA:
    """All tensors random, so that none is at a default."""
    torch.manual_seed(seed)
    tiny = preset_named("tiny")
    language = {**tiny.config["llm_config"], "architectures": [kind], "tie_word_embeddings": True, **KINDS[kind]}
    config = sa2va_config({**tiny.config["vision_config"], **vision}, language, "qwen_chat")
    model = Sa2VA(Architecture(config, tiny.sam), Prompts(byte_tokenizer(), "qwen_chat", language["vocab_size"]))
    model.load_state_dict(
        {n: torch.randn(t.shape) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    )
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A released folder of each kind. Not to be changed."""
    out = {kind: tmp_path_factory.mktemp("released") / kind for kind in KINDS}
    for kind, folder in out.items():
        save_model(random_model(kind), folder)
    return out


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A released folder with Qwen2, free to be changed."""
    return shutil.copytree(folders["Qwen2ForCausalLM"], tmp_path / "model")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    content = tensors(folder)
    change(content)
    save_file(content, folder / "model.safetensors")


def test_a_bit_that_flips_after_an_export_is_found(folders, tmp_path):
    out = tmp_path / "exported"
    draws = random.Random(3)
    loaded = load_model(folders["Qwen2ForCausalLM"])
    save_model(loaded.model, out, info=loaded.info, shard_bytes=10**9)
    path = out / "model.safetensors"
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    digits = header["__metadata__"]["file_crc32"]
    assert int(digits) == zlib.crc32(whole.replace(f'"file_crc32":"{digits}"'.encode(), b'"file_crc32":"0000000000"'))
    load_model(out)
    place = whole.index(digits.encode())
    for byte in (9, 300, place, place + 9, *(draws.randrange(8, len(whole)) for _ in range(12)), len(whole) - 1):
        data = bytearray(whole)
        data[byte] ^= 1 << draws.randrange(3)  # a digit stays one, or not
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=r"model.safetensors: (CRC-32 of the file; met|not a whole safetensors file)"
        ):
            load_model(out)
    path.write_bytes(whole)
    edit(out, lambda content: content["mlp1.0.weight"].add_(1))  # on purpose: saved anew, without a checksum
    load_model(out)


@pytest.mark.parametrize("kind", KINDS)
def test_load_and_save_give_back_every_tensor_bit_for_bit(kind, folders, tmp_path):
    loaded = load_model(folders[kind])
    save_model(loaded.model, tmp_path / "again", info=loaded.info, shard_bytes=400_000)
    before = tensors(folders[kind])
    after = tensors(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 3
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == json.loads((folders[kind] / "config.json").read_text())
    if kind == "InternLM2ForCausalLM":  # the official code refuses any other key here
        assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}


DECODER = "grounding_encoder.sam2_model.sam_mask_decoder"


def test_two_mask_decoders_as_in_folders_of_sa2va_i(folder, tmp_path):
    """The trained decoder is `sam_mask_decoder_modified` there, and `sam_mask_decoder` is SAM 2's own."""
    trained = {n.removeprefix(DECODER): t for n, t in tensors(folder).items() if n.startswith(f"{DECODER}.")}
    own = {name: torch.randn(tensor.shape) for name, tensor in trained.items()}
    edit(folder, lambda c: c.update({DECODER + n: t for n, t in own.items()}))
    edit(folder, lambda c: c.update({f"{DECODER}_modified{n}": t for n, t in trained.items()}))
    model = load_model(folder).model
    encoder = model.grounding_encoder
    for decoder, expected in ((encoder.sam2_model.sam_mask_decoder, trained), (encoder.original_mask_decoder, own)):
        found = decoder.state_dict()
        assert len(found) == len(expected) > 100 and all(torch.equal(found[n[1:]], t) for n, t in expected.items())
    set_trainable(model, ["sam_mask_decoder"], r=1, alpha=1, dropout=0)
    assert not any(parameter.requires_grad for parameter in encoder.original_mask_decoder.parameters())
    save_model(model, tmp_path / "again")
    before, after = tensors(folder), tensors(tmp_path / "again")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    edit(folder, lambda c: c.pop(f"{DECODER}_modified.iou_token.weight"))
    with pytest.raises(UserError, match=r"1 missing: \S*sam_mask_decoder_modified\.iou_token\.weight"):
        load_model(folder)


def test_sam_2_s_own_decoder_from_its_checkpoint(folder, tmp_path):
    model = load_model(folder).model
    sam = model.grounding_encoder.sam2_model
    file = tmp_path / "sam2.pt"
    state = {n: t + 1 if n.startswith("sam_mask_decoder.") else t for n, t in sam.state_dict().items()}
    torch.save({"model": state}, file)
    load_original_decoder(model.to(torch.bfloat16), file)
    own, trained = (d.state_dict() for d in (model.grounding_encoder.original_mask_decoder, sam.sam_mask_decoder))
    for name, tensor in own.items():
        assert torch.equal(tensor, state[f"sam_mask_decoder.{name}"].bfloat16()) and not torch.equal(
            tensor, trained[name]
        )
    model.grounding_encoder.original_mask_decoder = None
    for name, message in (
        ("sam_mask_decoder.iou_token.weight", r"sam2\.pt, sam_mask_decoder: .*1 missing: iou_token\.weight"),
        ("no_mem_embed", r"sam2\.pt: another SAM 2 than the model's; met another no_mem_embed"),
    ):
        torch.save({"model": {n: t for n, t in state.items() if n != name}}, file)
        with pytest.raises(UserError, match=message):
            load_original_decoder(model, file)
    torch.save({"model": state | {"no_obj_ptr": state["no_obj_ptr"] * 1.1}}, file)
    with pytest.raises(UserError, match=r"met another no_obj_ptr; .*that the model was made of"):
        load_original_decoder(model, file)
    assert model.grounding_encoder.original_mask_decoder is None


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_fusion_are_those_of_released_folders(kind, folders):
    """Compared with the table of names and, for fused tensors, with rows picked one by one."""
    model = random_model(kind)
    found = tensors(folders[kind])
    vision = found["vision_model.encoder.layers.1.attn.qkv.weight"]
    attention = model.vision_model.encoder.layer[1].attention
    assert vision.shape == (192, 64)
    for row in (0, 63):
        assert torch.equal(vision[row], attention.q_proj.weight[row])
        assert torch.equal(vision[64 + row], attention.k_proj.weight[row])
        assert torch.equal(vision[128 + row], attention.v_proj.weight[row])
    assert torch.equal(found["vision_model.embeddings.class_embedding"], model.vision_model.embeddings.cls_token)
    assert torch.equal(found["vision_model.encoder.layers.0.ls2"], model.vision_model.encoder.layer[0].lambda_2)
    block = "vision_model.encoder.layers.0."
    assert {n.removeprefix(block) for n in found if n.startswith(block)} == {
        *(f"{part}.{what}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for what in ("weight", "bias")),
        *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2"),
    }
    assert {n for n in found if "mlp1" in n} == {f"mlp1.{i}.{what}" for i in (0, 1, 3) for what in ("weight", "bias")}
    assert {n for n in found if n.startswith("text_hidden_fcs")} == {
        f"text_hidden_fcs.{i}.{what}" for i in (0, 2) for what in ("weight", "bias")
    }
    fuser = "grounding_encoder.sam2_model.memory_encoder.fuser.layers."
    assert fuser + "0.g_weight" in found and fuser + "0.gamma" not in found
    if kind == "InternLM2ForCausalLM":
        fused = found["language_model.model.layers.1.attention.wqkv.weight"]  # 4 heads, 2 of keys and values, 32 wide
        layer = model.language_model.model.layers[1].self_attn
        heads = fused.view(2, 4, 32, 128)
        for group in (0, 1):
            assert torch.equal(heads[group, 1], layer.q_proj.weight[(2 * group + 1) * 32 : (2 * group + 2) * 32])
            assert torch.equal(heads[group, 2], layer.k_proj.weight[group * 32 : (group + 1) * 32])
            assert torch.equal(heads[group, 3], layer.v_proj.weight[group * 32 : (group + 1) * 32])
        mlp = model.language_model.model.layers[0].mlp
        assert torch.equal(found["language_model.model.layers.0.feed_forward.w3.weight"], mlp.up_proj.weight)
        assert "language_model.output.weight" in found and "language_model.model.tok_embeddings.weight" in found


def test_a_loaded_model_gives_the_output_of_the_saved_one(folders):
    for kind, folder in folders.items():
        one = random_model(kind)
        two = load_model(folder).model
        ids = torch.arange(5)[None]
        with torch.no_grad():
            assert torch.equal(one.language_model(input_ids=ids).logits, two.language_model(input_ids=ids).logits)
            pixels = torch.randn(1, 3, 448, 448)
            assert torch.equal(one.encode_image(pixels), two.encode_image(pixels))
            picture = torch.randint(256, (1, 3, 1024, 1024), dtype=torch.uint8)
            assert torch.equal(one.encode_sam(picture).embedding, two.encode_sam(picture).embedding)


def test_rms_norms_and_normed_queries_of_the_large_tower(tmp_path):
    options = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    save_model(random_model("Qwen2ForCausalLM", **options), tmp_path / "model")
    names = tensors(tmp_path / "model")
    assert "vision_model.encoder.layers.0.attn.q_norm.weight" in names
    assert "vision_model.encoder.layers.0.attn.qkv.bias" not in names
    assert "vision_model.encoder.layers.0.norm1.bias" not in names
    load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp1.0.weight"), r"1 missing: mlp1\.0\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda t: t.update({"mlp1.3.bias": torch.zeros(7)}),
            r"1 of another shape: mlp1\.3\.bias \[7\], wanted \[128\]",
        ),
        (lambda t: t.pop("vision_model.encoder.layers.0.attn.qkv.bias"), r"1 missing: .*attn\.qkv\.bias"),
    ],
)
def test_loading_is_strict(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_head_in_the_file_is_loaded_even_if_configured_as_tied(folder):
    assert json.loads((folder / "config.json").read_text())["llm_config"]["tie_word_embeddings"]
    model = load_model(folder).model
    assert not model.tied
    assert torch.equal(model.language_model.lm_head.weight, tensors(folder)["language_model.lm_head.weight"])


def test_a_head_is_tied_only_where_the_file_has_none_and_is_then_not_saved(folder, tmp_path):
    edit(folder, lambda t: t.pop("language_model.lm_head.weight"))
    loaded = load_model(folder, dtype=torch.bfloat16)
    model = loaded.model
    assert model.tied and model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert loaded.info.dtype == torch.float32
    save_model(model, tmp_path / "again", info=loaded.info)
    assert tensors(tmp_path / "again").keys() == tensors(folder).keys()
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"1 missing: language_model\.lm_head\.weight"):
        load_model(folder)


def test_types_are_the_file_s_or_the_one_asked_for(folder):
    edit(folder, lambda t: t.update({"mlp1.3.weight": t["mlp1.3.weight"].bfloat16()}))
    kept = load_model(folder).model
    assert kept.mlp1[3].weight.dtype == torch.bfloat16 and kept.mlp1[1].weight.dtype == torch.float32
    cast = load_model(folder, dtype=torch.bfloat16).model
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    rotary = cast.language_model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    assert not any(p.requires_grad for p in cast.parameters()) and not cast.training


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "qwen2_5_vl", "not a Sa2VA.*met 'qwen2_5_vl'"),
        ("force_image_size", 224, "force_image_size.*met 224; wanted 448"),
        ("ps_version", "v1", "ps_version.*met 'v1'; wanted 'v2'"),
        ("select_layer", -4, "select_layer.*met -4"),
        ("use_llm_lora", 128, "use_llm_lora.*met 128"),
        ("template", "vicuna", "unknown chat template.*vicuna"),
        ("llm_config", None, "llm_config.*met None"),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_an_unknown_language_model_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["architectures"] = ["Phi3ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"llm_config\.architectures.*Phi3ForCausalLM.*Qwen2ForCausalLM"):
        load_model(folder)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "config.json").write_text("[1"), r"config\.json: cannot be read as JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02crm"), "not a whole safetensors file"),
        (lambda f: (f / "tokenizer_config.json").unlink(), r"tokenizer_config\.json: no such file"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read as a tokenizer"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}'),
            "no map of names to files of this folder",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "no such file",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}'),
            "files and index differ",
        ),
    ],
)
def test_broken_folders_are_one_line(folder, break_it, message):
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_names_that_are_neither_folder_nor_repository_are_refused():
    for name in ("/no/such/folder", "./nothing", "nothing"):
        with pytest.raises(UserError, match="no such folder"):
            load_model(name)


def test_code_in_a_folder_is_copied_but_not_run(folder, tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_sa2va_chat", "configuration_sa2va_chat", "tokenization_own"):
        (folder / f"{name}.py").write_text(trap)
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_own.Own", None]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    loaded = load_model(folder)
    save_model(loaded.model, tmp_path / "again", info=loaded.info)
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "again" / "modeling_sa2va_chat.py").read_text() == trap


def test_an_export_is_complete_or_absent(folders, tmp_path):
    loaded = load_model(folders["Qwen2ForCausalLM"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="there is something already"):
        save_model(loaded.model, tmp_path / "full", info=loaded.info)
    with pytest.raises(UserError):
        save_model(loaded.model, tmp_path / "new", info=ModelInfo(tmp_path / "gone"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def adapted(folder: Path, seed: int) -> Sa2VA:
    torch.manual_seed(seed)
    model = load_model(folder).model
    set_trainable(model, ["lora", "mlp1"], r=4, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.startswith("mlp1"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_adapters_are_merged_and_two_trainings_give_two_exports(folders, tmp_path):
    folder = folders["Qwen2ForCausalLM"]
    base = tensors(folder)
    exports = []
    for seed in (1, 2):
        model = adapted(folder, seed)
        ids = torch.arange(7)[None]
        before = model.language_model(input_ids=ids).logits
        layer = model.language_model.model.layers[0].mlp.up_proj
        expected = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert merge_adapters(model) == 14
        torch.testing.assert_close(model.language_model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-3)
        save_model(model, tmp_path / str(seed))
        exports.append(tensors(tmp_path / str(seed)))
        torch.testing.assert_close(exports[-1]["language_model.model.layers.0.mlp.up_proj.weight"], expected)
    one, two = exports
    assert one.keys() == two.keys() == base.keys()
    changed = {name for name in base if not torch.equal(one[name], base[name])}
    assert all("_proj" in name or name.startswith("mlp1") for name in changed) and len(changed) == 14 + 6
    assert {name for name in base if not torch.equal(one[name], two[name])} == changed
    for kept in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert torch.equal(one[kept], base[kept])


@pytest.fixture
def parts(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder as an InternVL, without what Sa2VA adds, and a SAM 2 checkpoint."""
    sam = {n.removeprefix("grounding_encoder.sam2_model."): t for n, t in tensors(folder).items() if "sam2_model" in n}
    sam = {n.replace("g_weight", "gamma"): t for n, t in sam.items()}
    torch.save({"model": sam}, tmp_path / "sam2.pt")
    rows = 272 - len(ADDED) - 4  # fewer than the tokenizer's, so that rows must be added

    def strip(content: dict[str, torch.Tensor]) -> None:
        for name in list(content):
            if name.startswith(("grounding_encoder", "text_hidden_fcs")):
                del content[name]
        for table in ("model.embed_tokens", "lm_head"):
            content[f"language_model.{table}.weight"] = content[f"language_model.{table}.weight"][:rows].clone()

    edit(folder, strip)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "template": "internvl2_5"}
    config["llm_config"]["vocab_size"] = rows
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in ADDED]
    path.write_text(json.dumps(content))
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    for key in ("extra_special_tokens", "additional_special_tokens"):
        content.pop(key, None)
    path.write_text(json.dumps(content))
    return folder, tmp_path / "sam2.pt"


def test_the_first_training_starts_from_internvl_and_sam2(parts, tmp_path):
    folder, sam = parts
    before = tensors(folder)
    loaded = load_parts(folder, sam)
    model = loaded.model
    prompts = load_parts_prompts(folder)
    assert prompts.describe("x", [2]) == model.prompts.describe("x", [2])
    assert torch.equal(prompts.ordinary, model.prompts.ordinary) and prompts.end_tokens == model.prompts.end_tokens
    assert {name for name in loaded.new if not name.startswith("text_hidden_fcs.")} == {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    }
    assert model.prompts.tokenizer.convert_tokens_to_ids(ADDED) == [262, 263, 264, 265, 266]
    assert model.architecture.template == "qwen_chat"
    save_model(model, tmp_path / "sa2va", info=loaded.info)
    after = tensors(tmp_path / "sa2va")
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
    table = after["language_model.model.embed_tokens.weight"]
    assert len(table) == 267 and len({tuple(row.tolist()) for row in table[263:]}) == 4
    again = load_model(tmp_path / "sa2va").model
    assert again.prompts.seg == 262 and again.prompts.encode("<vp>a</vp>")[0] == 265
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_sam_2_1_s_extra_tensors_are_left_out_on_saving(parts, tmp_path):
    folder, sam = parts
    real = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()
    torch.save({"model": real}, sam)
    loaded = load_parts(folder, sam)
    left_out = save_model(loaded.model, tmp_path / "sa2va", info=loaded.info)
    assert {name.removeprefix("grounding_encoder.sam2_model.") for name in left_out} == {
        "no_obj_embed_spatial",
        "obj_ptr_tpos_proj.weight",
        "obj_ptr_tpos_proj.bias",
    }
    again = load_model(tmp_path / "sa2va").model.grounding_encoder.sam2_model.state_dict()
    assert {name: tensor.shape for name, tensor in again.items()} == {
        name: tensor.shape for name, tensor in real.items() if not any(name in left for left in left_out)
    }
    assert all(torch.equal(tensor, real[name]) for name, tensor in again.items())


def test_a_sam_checkpoint_with_an_extra_tensor_or_of_unknown_size_is_refused(parts):
    folder, sam = parts
    content = torch.load(sam, weights_only=True)["model"]
    torch.save({"model": {**content, "stray": torch.zeros(1)}}, sam)
    with pytest.raises(UserError, match=r"1 unexpected: grounding_encoder\.sam2_model\.stray"):
        load_parts(folder, sam)
    content["image_encoder.trunk.patch_embed.proj.weight"] = torch.zeros(9, 3, 7, 7)
    torch.save({"model": content}, sam)
    with pytest.raises(UserError, match=r"sam2\.pt: no SAM 2 that is known; met a Hiera of width 9 with 4 blocks"):
        load_parts(folder, sam)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("what", ["code", "text", "other", "missing"])
def test_a_file_that_is_no_sam_checkpoint_is_refused(parts, tmp_path, what):
    folder, sam = parts
    sam.unlink()
    if what == "code":
        torch.save({"model": {"a": Trap(tmp_path / "ran")}}, sam)
    elif what == "text":
        sam.write_text("version https://git-lfs")
    elif what == "other":
        torch.save({"state_dict": {}}, sam)
    with pytest.raises(UserError, match=r"sam2\.pt: (not a|no such)") as caught:
        load_parts(folder, sam)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_random_model_has_all_tokens():
    assert build("tiny").prompts.seg == byte_tokenizer().convert_tokens_to_ids("[SEG]")
