"""YAML is bounded before anything is built from it; its scalars stay text."""

from pathlib import Path

import pytest

from shards.errors import UserError
from trainer.config import load_config
from trainer.yaml_text import read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "too large; met .* values; wanted at most 100,000, aliases written out"),
        ("a: &a [*a]\n", "an alias inside of what it names"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
        ("a: " + "[" * 20_000, "cannot be read as YAML"),
        ("seed: 1\n" * 200_000, "too large; wanted at most"),
        ("model:\n  path:\n", r"run.yaml, model.path: empty value"),
        ("data: {shards: [a, ]}\nmix:\n", r"run.yaml, mix: empty value"),
        ("seed: 1\nseed: 2\n", "cannot be read as YAML"),
    ],
)
def test_yaml_is_bounded_before_anything_is_built(tmp_path: Path, text: str, message: str):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config([str(tmp_path / "run.yaml")])


def test_a_colon_in_a_value_without_quotes_is_said_with_its_line():
    text = "data:\n  shards: [x]\n  where: category = 'a: b'\n"
    with pytest.raises(
        UserError, match=r"^run\.yaml, line 3: cannot be read as YAML; met .*; put quotes around a value"
    ):
        read_yaml(text, "run.yaml")
    assert read_yaml(text.replace("category = 'a: b'", "\"category = 'a: b'\""), "run.yaml") == {
        "data": {"shards": ["x"], "where": "category = 'a: b'"}
    }


def test_a_few_aliases_are_accepted(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("rates: &r {lora: 1.0e-3}\nmix: {dual: &d {weight: 2.0}, segment: *d}\n")
    config = load_config([str(tmp_path / "run.yaml")])
    assert config.mix["segment"].weight == 2.0


def test_scalars_stay_text_and_null_is_none():
    text = "a: 1e-3\nb: [007, yes, 1:30, '']\nc: null\nd: ~\ne: 'null'\nf: {1: 0x10}\n"
    expected = {"a": "1e-3", "b": ["007", "yes", "1:30", ""], "c": None, "d": None, "e": "null", "f": {"1": "0x10"}}
    assert read_yaml(text, "run.yaml") == expected
    assert read_yaml("", "run.yaml") == {}


def test_mappings_are_merged_as_yaml_says():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 4}, {x: 5, z: 6}]}\n"
    assert read_yaml(text, "run.yaml") == {
        "a": {"x": "1", "y": "2"},
        "b": {"x": "1", "y": "3"},
        "c": {"x": "4", "z": "6"},
    }


@pytest.mark.parametrize(
    "text", ["a: !!python/object:os.system x", "a: !tag 3", "{[a]: 1}", "a: {<<: 1}", "a: 1\na: 2"]
)
def test_yaml_with_tags_or_duplicate_keys_is_one_line(text: str):
    with pytest.raises(UserError, match=r"^run\.yaml: cannot be read as YAML; met "):
        read_yaml(text, "run.yaml")
