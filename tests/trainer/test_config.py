"""The configuration: a file, then the command line; a mistake is one clear line."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from shards.errors import UserError
from trainer.build import drop_unreached_parts
from trainer.config import Config, flat, load_config, save_config, with_values


def test_defaults_are_the_published_recipe():
    config = load_config([])
    assert config == Config()
    assert (config.lambda_mask, config.lambda_dice, config.lambda_lang) == (1.0, 1.0, 0.5)
    assert (config.num_points, config.oversample_ratio, config.importance_sample_ratio) == (12544, 3.0, 0.75)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (128, 256, 0.05)
    assert (config.lr, config.betas, config.eps, config.weight_decay) == (2e-5, [0.9, 0.999], 1e-8, 0.05)
    assert (config.warmup_steps, config.warmup_from, config.steps) == (366, 0.5, 12192)
    assert (config.accumulation, config.clip, config.mixed_precision) == (2, 1.0, "bf16")
    assert (config.corrupt_ratio, config.gumbel_tau, config.ema_decay) == (0.25, 0.7, 0.999)
    assert 128 <= config.gumbel_top_k <= 512


def test_command_line_wins_over_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-3\nlora: {r: 8}\ndata: {shards: [a, b]}\n")
    config = load_config(["steps=700", str(file), "lora.r=16", "trainable=[mlp1]"])
    assert (config.lr, config.lora.r, config.steps) == (1e-3, 16, 700)
    assert (config.data.shards, config.trainable) == (["a", "b"], ["mlp1"])


def test_a_bare_no_stays_text(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("mixed_precision: no\n")
    assert load_config([str(file)]).mixed_precision == load_config(["mixed_precision=no"]).mixed_precision == "no"


def test_the_saved_configuration_is_the_one_in_effect(tmp_path: Path):
    config = load_config(["lr=0.001", "data.shards=[x]", "objective=segment", "steps=500"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config([str(tmp_path / "config.yaml")]) == config
    assert flat(config)["data.shards"] == ["x"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lerning_rate=1", "unknown key; met lerning_rate"),
        ("lora.rank=4", "met lora.rank"),
        ("holdout=0.1", "did you mean data.holdout?"),
        ("steps=many", "steps"),
        ("lora=3", "lora"),
        ("objective=both", "met 'both'; wanted dual or segment"),
        ("mixed_precision=fp16", "wanted bf16 or no"),
        ("batch_size=0", "batch_size: out of range; met 0; wanted > 0"),
        ("corrupt_ratio=1.5", "corrupt_ratio: out of range"),
        ("data.sources={sa1b: 0.00001}", "data.sources.sa1b: out of range"),
        ("data.where=[area > 0.1]", "data.where: not a condition; met [area > 0.1]; wanted a condition, or {source: "),
        ("data.where={sav: ' '}", "data.where: empty value"),
        (
            "data.where=category = 'a: b'",
            "data.where: not a condition; met {category = 'a: b'}, which YAML reads as a mapping for its colon",
        ),
        ("data.where={sav: category = 'a: b'}", "put quotes around a value that has a colon and a space"),
        ("data.texts=[captions]", "data.texts: not names of texts; met [captions]; wanted source and TABLE.COLUMN"),
        ("data.frames=40", "conversation.max_row_tokens: rows end before their pictures do; met 8192; wanted > 10,360"),
        ("conversation.kinds={sav: talk}", "conversation.kinds.sav: no such kind of conversation; met 'talk'"),
        ("conversation.no_target=shrug", "conversation.no_target"),
        ("warmup_steps=20000", "warmup_steps: out of range"),
        ("betas=[0.9]", "betas"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("steps=[1", "steps=[1"),
    ],
)
def test_a_mistake_is_one_line(argument: str, message: str):
    with pytest.raises(UserError) as raised:
        load_config([argument])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_rate_may_name_a_part_that_no_loss_reaches(tmp_path: Path):
    arguments = ["objective=describe", "rates={text_hidden_fcs: 1e-4, lora: 1e-5}", "steps=700"]
    effective = drop_unreached_parts(load_config(arguments))
    assert effective.trainable == ["lora", "mlp1"]
    save_config(effective, tmp_path / "config.yaml")
    assert load_config([str(tmp_path / "config.yaml")]) == effective
    with pytest.raises(UserError, match="a rate for a part that does not train; met vision_model"):
        load_config([*arguments, "rates.vision_model=1e-4"])


def test_a_configuration_of_an_older_release_is_read(tmp_path: Path):
    """They were written with OmegaConf, and without the newer keys."""
    config = load_config(["objective=segment", "data.shards=[a]", "data.sources={sav: 2}", "mix.dual.weight=2"])
    values = asdict(config)
    del values["weight_decay_on"], values["data"]["holdout_by"], values["collective_timeout"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert load_config([str(tmp_path / "config.yaml")]) == config


def test_keys_are_set_on_a_copy():
    config = load_config([])
    other = with_values(config, {"data.holdout_by": "sample", "weight_decay_on": "all"})
    assert (other.data.holdout_by, other.weight_decay_on) == ("sample", "all")
    assert (config.data.holdout_by, config.weight_decay_on) == ("picture", "matrices")
    with pytest.raises(UserError, match=r"unknown key; met data.holdout_bi"):
        with_values(config, {"data.holdout_bi": "sample"})


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config([str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kinds", {"sav": "referring"}),
        ("with_replacement", True),
        ("one_phrase_per_row", True),
        ("no_target", "left_out"),
        ("negatives", 0.1),
        ("max_row_tokens", 4096),
    ],
)
def test_each_key_of_conversations_reaches_what_makes_them(key: str, value: object):
    config = load_config([f"conversation.{key}={json.dumps(value)}"])
    assert getattr(config.conversation_options(), key) == value != getattr(Config().conversation_options(), key)
