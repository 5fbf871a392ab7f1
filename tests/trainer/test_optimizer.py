"""The optimiser: AdamW a part, and moments in 8 bits that are as good, smaller, and come back to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from shards.recipe import RECIPES
from trainer.checkpoints.checkpoint import Parts, State, nbytes, write
from trainer.config import Config
from trainer.optimizer import from_stored, make_optimizer, set_rate, to_stored
from trainer.trained import Origin


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao compiles its step, which takes minutes on a CPU and changes no more than rounding."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def trained(make_loop, config: Config, steps: int) -> Parts:
    """After some steps with made-up gradients, the last of them at a rate of its own."""
    loop = make_loop(config)
    optimizer = make_optimizer(loop.model, config)
    parts = Parts(loop, set(), optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step)))
    more(parts, steps)
    return parts


def more(parts: Parts, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for parameter in parts.loop.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        parts.optimizer.step()
        parts.scheduler.step()


def test_8_bits_a_moment_take_a_quarter_and_train_alike(make_loop, config: Config):
    config.lr, config.rates = 1e-3, {"mlp1": 1e-4}
    plain, small = (trained(make_loop, Config(**{**vars(config), "optimizer": o}), 4) for o in ("adamw", "adamw8bit"))
    full, coded = (parts.tensors()["optimizer.safetensors"] for parts in (plain, small))
    for name, moment in full.items():
        if moment.numel() >= 4096 and moment.numel() % 256 == 0:  # a byte a value, a scale every 256; small ones stay
            sizes = [coded[f"{name}#{part}"].nbytes for part in ("codes", "scale")]
            assert sizes == [moment.nbytes // 4, moment.nbytes // 256], name
        else:
            assert coded[name].nbytes == moment.nbytes, name
    start = dict(make_loop(config).named_parameters())
    pairs = [(a, b, start[n]) for (n, a), b in zip(plain.loop.named_parameters(), small.loop.parameters(), strict=True)]
    far = torch.stack([(a - b).norm() for a, b, _ in pairs]).norm()
    moved = torch.stack([(a - s).norm() for a, _, s in pairs]).norm()
    assert 0 < far < 0.05 * moved
    rates = [[float(group["lr"]) for group in parts.optimizer.param_groups] for parts in (plain, small)]
    assert rates[0] == pytest.approx(rates[1]) and min(rates[0]) == pytest.approx(max(rates[0]) / 10)


def test_moments_in_8_bits_come_back_to_the_bit(make_loop, config: Config, tmp_path):
    config.optimizer = "adamw8bit"
    parts = trained(make_loop, config, 3)
    state = State(3, {}, 2, None, parts.schedule(), {}, [])
    json.dumps(parts.schedule())
    tensors = parts.tensors()
    assert nbytes(tensors) == sum(t.nbytes for group in tensors.values() for t in group.values())
    write(tmp_path, tensors, state, Origin.of(config, 3, RECIPES["default"], []), [])
    other = trained(make_loop, config, 0)
    other.read(tmp_path)
    for one in (parts, other):
        more(one, 2)
    first, second = (one.tensors() for one in (parts, other))
    for file, of in first.items():
        assert of.keys() == second[file].keys() and all(torch.equal(of[name], second[file][name]) for name in of), file
    assert any(name.endswith("#codes") for name in first["optimizer.safetensors"])


def test_stored_moments_are_plain_tensors_and_the_same_again(make_loop, config: Config):
    config.optimizer = "adamw8bit"
    parts = trained(make_loop, config, 1)
    state = next(of for of in parts.optimizer.state.values() if hasattr(of["exp_avg"], "codes"))
    stored = to_stored({"a:exp_avg": state["exp_avg"], "a:exp_avg_sq": state["exp_avg_sq"], "a:step": state["step"]})
    assert all(type(tensor) is torch.Tensor for tensor in stored.values()) and len(stored) == 5
    back = from_stored(stored)
    for kind in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(back[f"a:{kind}"].dequantize(), state[kind].dequantize())
    assert (back["a:exp_avg_sq"].dequantize() >= 0).all() and (back["a:exp_avg"].dequantize() < 0).any()


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_rate_is_changed_in_place(make_loop, config: Config, name: str):
    config.optimizer = name
    group = make_optimizer(make_loop(config).model, config).param_groups[0]
    before = copy.copy(group["lr"])
    set_rate(group, 0.25)
    assert float(group["lr"]) == 0.25 and type(group["lr"]) is type(before)
