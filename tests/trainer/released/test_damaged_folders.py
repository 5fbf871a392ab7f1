"""Model folders that are incomplete, damaged, renamed or of other sizes: valid ones load, others are one line."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from evaluation.evaluate import evaluate
from inference.loading import load
from inference.quantise import export_int8
from shards.errors import UserError
from shards.manifest import INDEX_DTYPE, Manifest, sha256
from tests.batches import make_loader
from trainer.released.files import resolve
from trainer.released.folder import load_model, load_parts, read_sam, save_model
from trainer.released.tokenizer import load_tokenizer
from trainer.trained import read_tensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7359192\n"


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder. Not to be changed."""
    out = tmp_path_factory.mktemp("released") / "model"
    save_model(model, out)
    return out


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy of the sound folder that a test may change."""
    return shutil.copytree(sound, tmp_path / "model")


def configure(folder: Path, section: str, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[section] |= values
    path.write_text(json.dumps(config))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(folder, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("llm_config", {"num_hidden_layers": 10**9}, "num_hidden_layers: not a size; met 1000000000"),
        ("llm_config", {"num_hidden_layers": 10**6}, "num_hidden_layers: another size .*; met 1000000; wanted 2"),
        ("vision_config", {"num_hidden_layers": 1}, "num_hidden_layers: another size .*; met 1; wanted 2"),
        ("vision_config", {"hidden_size": 10**7}, "hidden_size: another size .*; met 10000000; wanted 64"),
        ("vision_config", {"intermediate_size": 8}, "intermediate_size: another size .*; met 8; wanted 256"),
        ("llm_config", {"hidden_size": "128"}, "hidden_size: not a size; met '128'"),
        ("llm_config", {"vocab_size": -1}, "vocab_size: not a size; met -1"),
        ("llm_config", {"vocab_size": 10**7}, "vocab_size: another size .*; met 10000000; wanted 272"),
        ("llm_config", {"intermediate_size": None}, "intermediate_size: not a size; met None"),
        ("llm_config", {"num_attention_heads": 3}, "num_attention_heads: heads that do not share the width; met 3"),
        ("llm_config", {"num_attention_heads": 256}, "heads that do not share the width"),
        ("llm_config", {"num_key_value_heads": 3}, "num_key_value_heads: heads that are not shared evenly; met 3"),
        ("llm_config", {"head_dim": 10**7}, "head_dim: another size .*; met 10000000 for each of 4 heads"),
        ("llm_config", {"rms_norm_eps": float("nan")}, "llm_config.rms_norm_eps: not a finite number; met nan"),
        ("llm_config", {"rope_theta": float("inf")}, "llm_config.rope_theta: not a finite number; met inf"),
        ("llm_config", {"rms_norm_eps": "1e-6"}, "rms_norm_eps: not a number; met '1e-6'"),
        ("llm_config", {"hidden_act": "swooosh"}, "config.json: values that no model can be built of"),
        ("llm_config", {"rope_scaling": {"type": "dynamic", "factor": "x"}}, "config.json"),
        ("llm_config", {"architectures": "Qwen2ForCausalLM"}, "architectures: not a list of names"),
        ("vision_config", {"norm_type": 7}, "config.json"),
    ],
)
def test_values_of_a_configuration_are_compared_with_the_weights(
    folder: Path, section: str, values: dict, message: str
):
    configure(folder, section, **values)
    started = time.process_time()
    refused(folder, message)
    assert time.process_time() - started < 5  # nothing of that size was built


def test_any_changed_value_of_a_configuration_is_an_error_or_a_model(folder: Path):
    """24 random values; no other exception is raised."""
    whole = json.loads((folder / "config.json").read_text())
    draws = random.Random(0)
    odd = ["x", -1, 0, 10**30, 1.5, None, True, [], {}, {"a": [1]}, float("nan"), "2"]
    for _ in range(24):
        config = json.loads(json.dumps(whole))
        section = draws.choice([config, config["vision_config"], config["llm_config"]])
        section[draws.choice(sorted(section))] = draws.choice(odd)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            load(folder, "cpu")
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "module.base_model.model."])
def test_a_prefix_of_all_names_is_removed(folder: Path, sound: Path, prefix: str):
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    expected = load_model(sound).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_model(folder).model.state_dict().items())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {prefix + name: "model.safetensors" for name in tensors}})
    )
    assert load_model(folder).model.state_dict().keys() == expected.keys()


def test_a_prefix_of_some_names_is_an_error(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["module.mlp1.0.bias"] = tensors.pop("mlp1.0.bias")
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "1 missing: mlp1.0.bias. 1 unexpected: module.mlp1.0.bias$")


def test_adapters_that_are_not_merged_are_named(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(4, 128)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "lora_A.default.weight; merge the adapters into the weights")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, "a Git LFS pointer; .*git lfs pull"), (b"\n<!DOCTYPE html><html>Access denied</html>", "a web page")],
)
def test_placeholder_files_are_distinguished_from_damage(folder: Path, name: str, content: bytes, message: str):
    (folder / name).write_bytes(content)
    refused(folder, rf"{name}: not a model's file but what stands in for it; met {message}")


def test_pointers_in_other_files_are_named(folder: Path, tmp_path: Path):
    """An export would copy generation_config.json; SAM 2's checkpoint and a run's weights are not in a model folder."""
    (folder / "generation_config.json").write_bytes(LFS)
    refused(folder, "generation_config.json: .*Git LFS pointer")
    (folder / "generation_config.json").unlink()
    (folder / "model.safetensors.index.json").write_bytes(LFS)
    refused(folder, "index.json: .*Git LFS pointer")
    (tmp_path / "sam2.pt").write_bytes(LFS)
    with pytest.raises(UserError, match=r"sam2.pt: .*Git LFS pointer"):
        read_sam(tmp_path / "sam2.pt")
    (tmp_path / "trained.safetensors").write_bytes(LFS)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "trained.safetensors")


def test_a_token_table_smaller_than_the_tokenizer(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    rows = len(load_tokenizer(folder)) - 1
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"language_model.{name}.weight"] = tensors[f"language_model.{name}.weight"][:rows].contiguous()
    save_file(tensors, folder / "model.safetensors")
    configure(folder, "llm_config", vocab_size=rows)
    refused(folder, f"tokens that the model has no row for; met token {rows}; wanted less than {rows}, the rows")


def test_a_token_far_beyond_the_table(folder: Path):
    path = folder / "tokenizer.json"
    body = json.loads(path.read_text())
    body["model"]["vocab"]["far"] = 10**6
    path.write_text(json.dumps(body))
    refused(folder, "no row for; met token 1,000,000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.fill_(float("nan")), "mlp1.1.weight: weights that are not finite; met 32,768 of 32,768 values"),
        (lambda t: t[3, 5].fill_(-float("inf")), "mlp1.1.weight: weights that are not finite; met 1 of 32,768"),
        (lambda t: t.int(), "mlp1.1.weight: a tensor of another type; met torch.int32; wanted float32"),
        (lambda t: t.to(torch.float8_e4m3fn), "mlp1.1.weight: a tensor of another type; met torch.float8_e4m3fn"),
        (lambda t: t.half().fill_(float("nan")), "weights that are not finite"),
        (lambda t: t[:, :-1].contiguous(), r"1 of another shape: mlp1.1.weight \[128, 255\], wanted \[128, 256\]"),
        (lambda t: t[None], r"mlp1.1.weight \[1, 128, 256\]"),
    ],
)
def test_tensors_that_hold_no_weights(folder: Path, change: Callable, message: str):
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors["mlp1.1.weight"])
    if changed.ndim != 0:
        tensors["mlp1.1.weight"] = changed
    save_file(tensors, folder / "model.safetensors")
    refused(folder, message)


def test_damaged_headers_of_weights(folder: Path):
    """Files cut anywhere, with any length, with bits flipped: an error, or the tensors of the file."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    draws = random.Random(1)
    header = int.from_bytes(whole[:8], "little")
    variants = [whole[: draws.randrange(len(whole))] for _ in range(5)]
    variants += [length.to_bytes(8, "little") + whole[8:] for length in (0, 1, 2**63, 2**64 - 1, header + 8)]
    for _ in range(12):
        flipped = bytearray(whole)
        flipped[draws.randrange(8 + header)] ^= 1 << draws.randrange(8)
        variants.append(bytes(flipped))
    refusals = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            load(folder, "cpu")
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and "model" in str(error)
    assert refusals >= 12


def test_a_tensor_in_two_files(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    save_file({"mlp1.0.bias": tensors["mlp1.0.bias"]}, folder / "more.safetensors")
    of = dict.fromkeys(tensors, "model.safetensors") | {"mlp1.0.bias": "more.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": of}))
    refused(folder, "more.safetensors: tensors that another file holds too; met mlp1.0.bias")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_json_that_is_nested_deeply(folder: Path, name: str):
    (folder / name).write_text('{"a":' * 100_000)
    refused(folder, f"{name}: cannot be read as JSON; met nested too deeply")


def test_a_byte_order_mark_is_no_fault(folder: Path):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load_model(folder)


def test_the_same_holds_for_int8_folders_and_trained_weights(model, folder: Path, tmp_path: Path):
    export_int8(load_model(folder), tmp_path / "int8")
    broken = shutil.copytree(tmp_path / "int8", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    (scale, *_) = (name for name in tensors if name.endswith("_scale"))
    save_file(tensors | {scale: tensors[scale] * float("nan")}, broken / "model.safetensors")
    refused(broken, "_scale: weights that are not finite")
    save_file(tensors, broken / "model.safetensors")
    configure(broken, "llm_config", num_hidden_layers=10**6)
    refused(broken, "num_hidden_layers: another size")
    shutil.copy(tmp_path / "int8" / "config.json", broken / "config.json")
    (broken / "tokenizer.json").write_bytes(LFS)
    refused(broken, "Git LFS pointer")


def test_sam_2_s_checkpoint_and_internvl_s_folder(model, folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "internvl_chat"}
    parts = {"vision_model", "language_model", "mlp1"}
    of_all = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in of_all.items() if n.split(".")[0] in parts}, folder / "model.safetensors")
    sam = {n.removeprefix("sam2_model."): t for n, t in model.grounding_encoder.state_dict().items()}
    path = tmp_path / "sam2.pt"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in sam.items()}}, path)
    assert read_sam(path).keys() == sam.keys()
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_parts(folder, path).model
    name = "sam_mask_decoder.iou_token.weight"
    assert torch.equal(loaded.grounding_encoder.sam2_model.state_dict()[name], sam[name])
    for tensors, message in (
        ({name: sam[name]}, f"no SAM 2 among the tensors; met {name}; wanted image_encoder.trunk"),
        ({**sam, "image_encoder.trunk.patch_embed.proj.weight": torch.tensor(1.0)}, "no SAM 2 among the tensors"),
        ({**sam, name: sam[name] * float("nan")}, "iou_token.weight: weights that are not finite"),
    ):
        torch.save({"model": tensors}, path)
        with pytest.raises(UserError, match=message):
            load_parts(folder, path)
    config["llm_config"] |= {"num_hidden_layers": 10**6}
    for wrong in (config, {**config, "llm_config": None}, {**config, "vision_config": [1]}):
        (folder / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"config.json, (llm|vision)_config"):
            load_parts(folder, path)


def test_a_mistyped_path_of_a_run_is_reported_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr("trainer.released.files.snapshot_download", offline)
    with pytest.raises(UserError, match=r"runs/mien: no such folder, and the hub .*; did you mean runs/mine\?$"):
        resolve("runs/mien")
    with pytest.raises(UserError, match="the hub does not give it; met Cannot find an appropriate"):
        resolve("OWNER/Sa2VA")


def test_training_and_evaluation_refuse_a_set_without_samples(sound: Path, small_set: Path, tmp_path: Path):
    """Earlier releases wrote such sets."""
    empty = shutil.copytree(small_set, tmp_path / "empty")
    np.save(empty / "index.npy", np.zeros(0, INDEX_DTYPE))
    counts = {"inputs": 0, "samples": 0, "objects": 0, "left_out": {}, "notes": {}, "shards": ()}
    manifest = replace(Manifest.read(empty), index_sha256=sha256((empty / "index.npy").read_bytes()), **counts)
    (empty / "manifest.json").write_bytes(manifest.to_bytes())
    for part in ("train", "holdout"):
        with pytest.raises(UserError, match="a set without samples; wanted at least one"):
            make_loader([empty], fields=("masks1",), batch_size=1, seed=0, holdout=0.5, part=part)
    with pytest.raises(UserError, match="a set without samples"):
        evaluate(str(sound), [str(empty)], device="cpu")
