"""Checkpoints of runs: their content, strict loading, and exports with the trained weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import UserError
from shards.recipe import RECIPES
from tests.joined import Joined, command_line
from trainer.checkpoints.checkpoint import Parts, State, write
from trainer.checksums import CHECKSUMS
from trainer.config import Config, ModelConfig
from trainer.export import export, load_any
from trainer.model.adapters import merge_adapters
from trainer.model.sa2va import Sa2VA, build
from trainer.model.trainable import set_trainable
from trainer.objectives.step import Step
from trainer.released.folder import cast, load_model, save_model
from trainer.trained import Origin, base_model, base_prompts, load_trained, save_trained, trained_tensors


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder in bfloat16. Not to be changed."""
    torch.manual_seed(0)
    model = build("tiny")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    out = tmp_path_factory.mktemp("released") / "model"
    save_model(model, out)
    return out


def config_of(released: Path, trainable: list[str]) -> Config:
    config = Config(model=ModelConfig(path=str(released)), trainable=trainable)
    config.lora.r = 4
    config.lora.alpha = 8
    return config


def train_a_little(config: Config, folder: Path, seed: int) -> Sa2VA:
    """Change all trainable parameters."""
    base = base_model(config.model, "cpu")
    model = base.model
    set_trainable(model, config.trainable, **asdict(config.lora))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_trained(folder, trained_tensors(model, base.new), Origin.of(config, 3, RECIPES["default"], ["sav: 7 samples"]))
    return model.eval()


def same(one: Sa2VA, two: Sa2VA) -> bool:
    a = one.state_dict()
    b = two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_adapters_alone_are_saved_and_loaded(released, tmp_path):
    config = config_of(released, ["lora"])
    model = train_a_little(config, tmp_path / "run" / "checkpoint", 1)
    saved = load_file(tmp_path / "run" / "checkpoint" / "trained.safetensors")
    assert len(saved) == 2 * 7 * 2 and all("lora_" in name for name in saved)
    trained, origin = load_trained(tmp_path / "run" / "checkpoint")
    loaded = trained.model
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert origin.model == config.model and origin.data == ["sav: 7 samples"]
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_tensors_that_no_file_holds_are_saved_even_if_frozen(tmp_path):
    config = Config(trainable=["mlp1"])
    torch.manual_seed(4)
    model = train_a_little(config, tmp_path, 1)
    torch.manual_seed(5)  # a random model would come out otherwise now
    loaded = load_trained(tmp_path)[0].model
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_two_checkpoints_give_two_exports_in_the_dtype_of_their_base(released, tmp_path):
    base = load_file(released / "model.safetensors")
    exports = []
    for seed in (1, 2):
        run = tmp_path / f"run{seed}"
        train_a_little(
            config_of(released, ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"]), run / "checkpoint", seed
        )
        if seed == 1:
            command = ["export", "--checkpoint", run, "--out", tmp_path / "out1"]
            output = tmp_path / "said"
            assert Joined(1, command_line, command, log=output).wait() == [0]
            assert "bytes of weights in 1 file(s)" in output.read_text()
        else:
            export(run, tmp_path / "out2", None)
        exports.append(load_file(tmp_path / f"out{seed}" / "model.safetensors"))
    one, two = exports
    assert {n: (t.dtype, t.shape) for n, t in one.items()} == {n: (t.dtype, t.shape) for n, t in base.items()}
    changed = {name for name in base if not torch.equal(base[name], one[name])}
    assert {name for name in base if not torch.equal(one[name], two[name])} == changed
    assert {name.split(".")[0] for name in changed} == {
        "language_model",
        "mlp1",
        "text_hidden_fcs",
        "grounding_encoder",
    }
    assert not [n for n in changed if "embed_tokens" in n or "lm_head" in n or "image_encoder" in n or "memory" in n]
    card = (tmp_path / "out1" / "README.md").read_text()
    for fact in (
        "started from | path `model`",
        "lora, mlp1",
        "r 4, alpha 8",
        "3 steps",
        "sav: 7 samples",
        "objective dual",
    ):
        assert fact in card


def test_an_export_gives_the_output_of_the_run(released, tmp_path):
    config = config_of(released, ["lora", "token_embeddings"])
    model = train_a_little(config, tmp_path / "run" / "checkpoint", 3)
    export(tmp_path / "run", tmp_path / "out", torch.float32)
    ids = torch.arange(9)[None]
    expected = model.language_model(input_ids=ids).logits
    loaded = load_model(tmp_path / "out", dtype=torch.float32).model
    torch.testing.assert_close(loaded.language_model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    table = model.language_model.model.embed_tokens.weight
    assert torch.equal(loaded.language_model.model.embed_tokens.weight, table)
    before = load_model(released, dtype=torch.float32).model
    assert not torch.equal(table, before.language_model.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "objective, expected", [("converse", {"video_frames": "uniform", "video_frames_number": 3}), ("dual", {})]
)
def test_an_export_says_which_frames_of_a_video_were_shown(released, tmp_path, objective, expected):
    """The dual loop shows single frames: then the folder says what that of its base does."""
    config = replace(config_of(released, ["lora"]), objective=objective)
    config.data.frames = 3
    train_a_little(config, tmp_path / "run" / "checkpoint", 3)
    export(tmp_path / "run", tmp_path / "out", None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((released / "config.json").read_text())
    assert written == before | expected and before.keys().isdisjoint(expected)


def test_a_released_folder_can_be_exported_in_another_dtype(released, tmp_path):
    export(released, tmp_path / "out", torch.float32)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


def test_the_teacher_is_exported_in_place_of_the_student(released, tmp_path):
    """The checkpoint is written by a run's own `Parts`, after updates of the teacher."""
    config = config_of(released, ["lora", "mlp1"])
    base = base_model(config.model, "cpu")
    set_trainable(base.model, config.trainable, **asdict(config.lora))
    step = Step(base.model, config)
    step.teacher.reset(step)
    expected = {}
    for name, parameter in base.model.named_parameters():
        if parameter.requires_grad:
            before = parameter.detach().clone()
            parameter.data += torch.randn_like(parameter)
            expected[name] = before + 0.25 * (parameter.detach() - before)
    step.teacher.decay = 0.75
    step.teacher.update()
    optimizer = torch.optim.AdamW([p for p in base.model.parameters() if p.requires_grad])
    parts = Parts(step, base.new, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0))
    run = tmp_path / "run" / "checkpoint"
    run.mkdir(parents=True)
    origin = Origin.of(config, 3, RECIPES["default"], ["sav: 7 samples"])
    state = State(3, {}, 1, None, {}, {}, [])
    write(run, parts.tensors(), state, origin, [])

    student, _ = load_any(tmp_path / "run")
    teacher, _ = load_any(tmp_path / "run", teacher=True)
    merged = base_model(config.model, "cpu").model
    set_trainable(merged, config.trainable, **asdict(config.lora))
    for name, parameter in merged.named_parameters():
        if name in expected:
            parameter.data.copy_(expected[name])
    merge_adapters(merged)
    cast(merged, torch.bfloat16)
    assert same(teacher.model, merged) and not same(teacher.model, student.model)
    export(tmp_path / "run", tmp_path / "out", teacher=True)
    assert same(load_model(tmp_path / "out").model, merged)
    assert "| weights | of the teacher:" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="a released folder has no teacher"):
        export(tmp_path / "out", tmp_path / "other", teacher=True)
    train_a_little(config, tmp_path / "bare", 1)
    with pytest.raises(UserError, match=r"teacher\.safetensors"):
        load_trained(tmp_path / "bare", teacher=True)


def test_trained_weights_are_float32_over_a_bfloat16_base(released, tmp_path):
    config = config_of(released, ["lora", "mlp1"])
    config.model = replace(config.model, dtype="bfloat16")
    model = base_model(config.model, "cpu").model
    set_trainable(model, config.trainable, **asdict(config.lora))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    train_a_little(config, tmp_path, 1)
    assert {t.dtype for t in load_file(tmp_path / "trained.safetensors").values()} == {torch.float32}
    assert {p.dtype for p in load_any(tmp_path)[0].model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp1.0.weight"), r"1 missing: mlp1\.0\.weight"),
        (lambda t: t.update({"mlp1.9.weight": torch.zeros(1)}), r"1 unexpected: mlp1\.9\.weight"),
        (lambda t: t.update({"mlp1.0.weight": torch.zeros(3)}), "1 of another shape"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(released, tmp_path, change, message):
    train_a_little(config_of(released, ["mlp1"]), tmp_path, 1)
    weights = load_file(tmp_path / "trained.safetensors")
    change(weights)
    save_file(weights, tmp_path / "trained.safetensors")
    (tmp_path / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=message):
        load_trained(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_one_line(released, tmp_path):
    with pytest.raises(UserError, match="no model here"):
        load_any(tmp_path)
    train_a_little(config_of(released, ["mlp1"]), tmp_path, 1)
    (tmp_path / CHECKSUMS).unlink()
    body = json.loads((tmp_path / "origin.json").read_text())
    for changed, message in (({**body, "version": 99}, "another version"), ({**body, "extra": 1}, "not the origin")):
        (tmp_path / "origin.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load_any(tmp_path)
    (tmp_path / "origin.json").write_text(json.dumps(body))
    (tmp_path / "trained.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_any(tmp_path)


def test_prompts_need_no_weights(released, tmp_path):
    expected = load_model(released).model.prompts
    folder = shutil.copytree(released, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    for config in (ModelConfig(path=str(folder)), ModelConfig(preset="tiny")):
        prompts = base_prompts(config)
        assert prompts.segment("x", "a dog") == expected.segment("x", "a dog")
        assert (prompts.end_tokens, prompts.seg) == (expected.end_tokens, expected.seg)
        assert torch.equal(prompts.ordinary, expected.ordinary)
