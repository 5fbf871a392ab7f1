"""Which steps are profiled; tests/trainer/checkpoints/test_never_lost.py reads the traces of a run."""

import pytest

from shards.errors import UserError
from trainer.config import load_config
from trainer.measure.profiler import Profiler


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ([], []),
        (["profile={from: 2, steps: 2}"], [2, 3]),
        (["profile.steps=1"], [10]),
        (["profile.from=4"], [4, 5, 6]),
    ],
)
def test_the_steps_that_are_asked_for(given, steps):
    assert [*load_config(given).profiled()] == steps


@pytest.mark.parametrize("given", ["profile.steps=51", "profile.from=0", "profile.until=3", "profile=3"])
def test_a_mistake_names_the_key(given):
    with pytest.raises(UserError, match=r"^profile[.:]"):
        load_config([given])


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file")
    profiler = Profiler(range(1, 2), tmp_path, 0, print)
    profiler.begin(1)
    profiler.end(1)
    assert "the profile could not be written" in caplog.text
