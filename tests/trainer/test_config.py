"""The configuration: a file, then the command line; a mistake is one clear line."""

from pathlib import Path

import pytest

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


def test_a_bare_no_is_no(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("mixed_precision: no\n")
    assert load_config([str(file)]).mixed_precision == load_config(["mixed_precision=no"]).mixed_precision == "no"


def test_what_is_saved_is_what_was_in_effect(tmp_path: Path):
    config = load_config(["lr=0.001", "data.shards=[x]", "objective=segment", "steps=500"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config([str(tmp_path / "config.yaml")]) == config
    assert flat(config)["data.shards"] == ["x"]


@pytest.mark.parametrize(
    ("argument", "said"),
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
        ("warmup_steps=20000", "warmup_steps: out of range"),
        ("betas=[0.9]", "betas"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("steps=[1", "steps=[1"),
    ],
)
def test_a_mistake_is_one_line(argument: str, said: str):
    with pytest.raises(UserError) as raised:
        load_config([argument])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("data.shards=shards/sav", "met 'shards/sav'; wanted a list, .*; did you mean data.shards=\\[shards/sav\\]\\?"),
        ("data.sources=sav:2,coco=3", "did you mean data.sources={sav: 2,coco: 3}\\?"),
        ("mix=[dual,segment]", "did you mean mix={dual: {}, segment: {}}\\?"),
        ("objective=[describe]", "did you mean objective=describe\\?"),
        ("steps=1e3", "wanted a whole number; did you mean steps=1000\\?"),
        ("mix.dual.wieght=2", "unknown key; met mix.dual.wieght; did you mean mix.dual.weight\\?"),
        ("data.shard=[a]", "did you mean data.shards\\?"),
        ("betas=[0.9,2]", r"^betas\[1\]: out of range; met 2.0; wanted < 1: a moment that forgets nothing"),
        ("betas=[0.9,0.99,0.999]", "wanted 2 values$"),
        ("betas=0.9", r"wanted a list, such as \[a, b\]$"),  # [0.9] would be refused, so it is not proposed
        ("seed=-1", "^seed: out of range; met -1; wanted >= 0$"),
        ("steps=true", "wanted a whole number$"),
    ],
)
def test_it_says_what_was_meant(argument: str, said: str):
    with pytest.raises(UserError, match=said):
        load_config([argument])


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: -1\nlora: {r: 0}\nstep: 1\n")
    for more, said in (
        ([], "run.yaml: unknown key; met step; did you mean steps?"),
        (["step=3"], "unknown key; met step"),
    ):
        with pytest.raises(UserError) as raised:
            load_config([str(file), *more])
        assert str(raised.value).startswith(f"{tmp_path}/{said}" if not more else said)
    file.write_text("lr: -1\n")
    with pytest.raises(UserError, match=r"run\.yaml, lr: out of range; met -1"):
        load_config([str(file)])
    with pytest.raises(UserError, match=r"^lr: out of range; met -2"):
        load_config([str(file), "lr=-2"])


def test_paths_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs" / "a=b").mkdir(parents=True)
    (tmp_path / "runs" / "a=b" / "config.yaml").write_text("steps: 700\n")
    (tmp_path / "lr=1.yaml").write_text("steps: 800\n")
    (tmp_path / "a=b.yaml").write_text("steps: 900\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(["runs/a=b/config.yaml"]).steps == 700
    assert load_config([f"{tmp_path}/runs/a=b/config.yaml"]).steps == 700
    assert load_config(["a=b.yaml"]).steps == 900
    assert load_config(["./lr=1.yaml"]).steps == 800
    with pytest.raises(UserError, match=r"^lr: "):
        load_config(["lr=1.yaml"])  # begins with the name of a key
    assert load_config(["output_dir=runs/a=b"]).output_dir == "runs/a=b"
    assert load_config(["data.shards=[shards/a=b]"]).data.shards == ["shards/a=b"]


def test_values_from_the_environment_have_the_type_of_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = {"STEPS": "700", "LR": "1e-4", "COMPILE": "true", "SETS": "[shards/a, shards/b]", "ONE": "shards/a"}
    given |= {"SOURCES": "{sav: 2}", "NOTHING": "null"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.yaml"
    file.write_text(
        "steps: ${oc.env:STEPS}\nlr: ${oc.env:LR}\ncompile: ${oc.env:COMPILE}\nwarmup_steps: ${accumulation}\n"
        "data: {shards: '${oc.env:SETS}', sources: '${oc.env:SOURCES}'}\nmodel: {path: '${oc.env:NOTHING}'}\n"
        "output_dir: runs/${oc.env:STEPS}\n"
    )
    config = load_config([str(file), "data.holdout=${oc.env:NOT_SET_ANYWHERE,0.1}"])
    assert (config.steps, config.lr, config.compile, config.warmup_steps) == (700, 1e-4, True, 2)
    assert (config.data.shards, config.data.sources) == (["shards/a", "shards/b"], {"sav": 2})
    assert (config.model.path, config.output_dir, config.data.holdout) == (None, "runs/700", 0.1)
    assert load_config(["data.shards=['${oc.env:ONE}']"]).data.shards == ["shards/a"]
    with pytest.raises(UserError, match=r"^data.shards: wrong type; met 'shards/a'"):
        load_config(["data.shards=${oc.env:ONE}"])


def test_text_stays_as_it_was_given():
    assert load_config(["output_dir=2024"]).output_dir == "2024"
    assert load_config(["output_dir=007"]).output_dir == "007"
    assert load_config(["output_dir=1e3"]).output_dir == "1e3"
    assert load_config(["data.shards=[1:30, yes]"]).data.shards == ["1:30", "yes"]


def test_a_rate_may_name_a_part_that_no_loss_reaches(tmp_path: Path):
    given = ["objective=describe", "rates={text_hidden_fcs: 1e-4, lora: 1e-5}", "steps=700"]
    effective = drop_unreached_parts(load_config(given))
    assert effective.trainable == ["lora", "mlp1"]
    save_config(effective, tmp_path / "config.yaml")
    assert load_config([str(tmp_path / "config.yaml")]) == effective
    with pytest.raises(UserError, match="a rate for a part that does not train; met vision_model"):
        load_config([*given, "rates.vision_model=1e-4"])


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
