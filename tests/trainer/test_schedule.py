"""The learning rate rises from half to the full value, and falls to 0 at the end."""

import pytest

from trainer.schedule import rate_factor


def test_the_published_schedule():
    def factor(step: int) -> float:
        return rate_factor(step, warmup_steps=366, warmup_from=0.5, steps=12192)

    assert factor(0) == 0.5
    assert factor(183) == pytest.approx(0.75)
    assert factor(366) == 1.0
    assert factor(366 + (12192 - 366) // 2) == pytest.approx(0.5, abs=1e-3)
    assert factor(12192) == pytest.approx(0.0)
    falling = [factor(step) for step in range(366, 12192, 100)]
    assert falling == sorted(falling, reverse=True)


def test_no_warm_up():
    assert rate_factor(0, warmup_steps=0, warmup_from=0.5, steps=10) == 1.0
