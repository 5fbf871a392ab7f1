"""Rates of a run, and the notice that it waits for its data."""

from trainer.measure.rates import Bottleneck


def test_a_run_that_waits_for_its_data_is_notified_once():
    """One slow batch in 20 steps gives no notice; a fifth of the time spent waiting does."""
    bottleneck = Bottleneck(threads=3)
    fine = [bottleneck.notice(0.9 if step == 7 else 0.1) for step in range(60)]
    slow = [bottleneck.notice(0.4) for _ in range(60)]
    assert fine == [None] * 60
    [notice] = [line for line in slow if line]
    assert "data.threads (now 3)" in notice and "recode" in notice
