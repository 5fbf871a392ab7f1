"""All processes agree on means, amounts and signals; a loss that is not finite stops all of them."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from shards.errors import UserError
from trainer.agreement import over_processes, stop_unless_finite

KEYS = {"dual": ["a", "b"], "segment": ["c"]}


def test_means_amounts_and_signals_share_one_collective():
    values = {"loss": torch.tensor(2.0), "bce": torch.tensor(0.5)}
    amounts = {"tokens": torch.tensor(300.0), "waited": 0.25}
    means, each, signal = over_processes(Accelerator(cpu=True), values, amounts, 15)
    assert (means, each, signal) == ({"loss": 2.0, "bce": 0.5}, {"tokens": [300.0], "waited": [0.25]}, 15)


def test_finite_losses_do_not_stop_the_run():
    stop_unless_finite({"loss": 1.0, "grad_norm": 2.0}, {"loss": torch.tensor(1.0)}, 3, KEYS)


def test_a_gradient_that_is_not_finite_is_reported_only_where_all_losses_are_finite():
    """All processes have the norm of the mean gradient; one of them has the loss that is not finite."""
    local = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(torch.nan)}
    for loss, message in ((torch.nan, "met finite here, not on another process"), (1.0, "met grad_norm nan")):
        with pytest.raises(UserError, match=message):
            stop_unless_finite({"loss": loss, "grad_norm": torch.nan}, local, 3, KEYS)


@pytest.mark.parametrize(
    ("local", "message"),
    [(torch.nan, "loss nan"), (torch.inf, "loss inf"), (1.0, "finite here, not on another process")],
)
def test_one_process_that_is_not_finite_stops_all_of_them(local: float, message: str):
    """The mean is that of all processes, so it is not finite on any of them."""
    with pytest.raises(UserError) as raised:
        stop_unless_finite({"loss": torch.nan}, {"loss": torch.tensor(local)}, 3, KEYS)
    assert "step 3, objective dual, samples a, b; objective segment, samples c" in str(raised.value)
    assert message in str(raised.value)
