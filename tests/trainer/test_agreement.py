"""What all processes agree on: means, amounts, signals, and that a loss which is not finite stops them."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from shards.errors import UserError
from trainer.agreement import over_processes, stop_unless_finite

KEYS = {"dual": ["a", "b"], "segment": ["c"]}


def test_one_row_says_it_all():
    values = {"loss": torch.tensor(2.0), "bce": torch.tensor(0.5)}
    amounts = {"tokens": torch.tensor(300.0), "waited": 0.25}
    means, each, signal = over_processes(Accelerator(cpu=True), values, amounts, 15)
    assert (means, each, signal) == ({"loss": 2.0, "bce": 0.5}, {"tokens": [300.0], "waited": [0.25]}, 15)


def test_what_is_finite_goes_on():
    stop_unless_finite({"loss": 1.0, "grad_norm": 2.0}, {"loss": torch.tensor(1.0)}, 3, KEYS)


def test_a_gradient_that_is_not_finite_is_its_own_reason_only_where_no_loss_is():
    """All processes have the norm of the mean gradient; one of them has the loss that spoilt it."""
    own = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(torch.nan)}
    for loss, said in ((torch.nan, "met finite here, not on another process"), (1.0, "met grad_norm nan")):
        with pytest.raises(UserError, match=said):
            stop_unless_finite({"loss": loss, "grad_norm": torch.nan}, own, 3, KEYS)


@pytest.mark.parametrize(
    ("own", "said"),
    [(torch.nan, "loss nan"), (torch.inf, "loss inf"), (1.0, "finite here, not on another process")],
)
def test_one_process_that_is_not_finite_stops_all_of_them(own: float, said: str):
    """The mean is that of all processes, so it is not finite on any of them."""
    with pytest.raises(UserError) as raised:
        stop_unless_finite({"loss": torch.nan}, {"loss": torch.tensor(own)}, 3, KEYS)
    assert "step 3, objective dual, samples a, b; objective segment, samples c" in str(raised.value)
    assert said in str(raised.value)
