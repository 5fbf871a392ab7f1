"""A mistake in the configuration is one line with a suggestion."""

from pathlib import Path

import pytest

from shards.errors import UserError
from trainer.config import load_config


@pytest.mark.parametrize(
    ("argument", "message"),
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
def test_a_mistake_gets_a_suggestion(argument: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config([argument])


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: -1\nlora: {r: 0}\nstep: 1\n")
    for more, message in (
        ([], "run.yaml: unknown key; met step; did you mean steps?"),
        (["step=3"], "unknown key; met step"),
    ):
        with pytest.raises(UserError) as raised:
            load_config([str(file), *more])
        assert str(raised.value).startswith(f"{tmp_path}/{message}" if not more else message)
    file.write_text("lr: -1\n")
    with pytest.raises(UserError, match=r"run\.yaml, lr: out of range; met -1"):
        load_config([str(file)])
    with pytest.raises(UserError, match=r"^lr: out of range; met -2"):
        load_config([str(file), "lr=-2"])
