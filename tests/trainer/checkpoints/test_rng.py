"""The random state of a process survives as JSON; a new rank gets one from the seed."""

import json
import random

import numpy as np
import pytest
import torch

from trainer.checkpoints.rng import random_state, set_random_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.gauss(), *np.random.standard_normal(3), *torch.rand(3).tolist(), random.random()]


def test_each_rank_restores_its_own_state():
    states = []
    expected = []
    for seed in (1, 2):
        set_random_state([], 0, CPU, seed)
        draws()  # an odd number of Gaussians leaves a spare one behind
        states.append(random_state(CPU))
        expected.append(draws())
    read = json.loads(json.dumps(states))
    for rank in (1, 0):
        set_random_state(read, rank, CPU, seed=99)
        assert draws() == expected[rank]
    assert expected[0] != expected[1]


def test_a_rank_without_a_state_follows_the_seed():
    states = [random_state(CPU)]
    drawn = []
    for seed in (5, 5, 6):
        set_random_state(states, 1, CPU, seed)
        drawn.append(draws())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_state_of_a_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    state = random_state(device)
    first = torch.rand(5, device=device)
    set_random_state([json.loads(json.dumps(state))], 0, device, seed=1)
    assert torch.equal(torch.rand(5, device=device), first)
