"""AdamW per part; moments in 8 bits are smaller, train alike and are restored bit for bit."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_pt_utils import get_parameter_names

from shards.recipe import RECIPES
from trainer.checkpoints.checkpoint import Parts, State, nbytes, write
from trainer.config import Config
from trainer.model.sa2va import build
from trainer.model.trainable import PARTS, set_trainable
from trainer.optimizer import from_stored, make_optimizer, set_rate, to_stored
from trainer.trained import Origin


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao compiles its step, which takes minutes on a CPU and changes no more than rounding."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def trained(make_loop, config: Config, steps: int) -> Parts:
    """Return `Parts` after some steps with made-up gradients, the last of them at another rate."""
    loop = make_loop(config)
    optimizer = make_optimizer(loop.model, config)
    parts = Parts(loop, frozenset(), optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step)))
    more(parts, steps)
    return parts


def more(parts: Parts, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for parameter in parts.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        parts.optimizer.step()
        parts.scheduler.step()


def test_biases_norms_and_scales_do_not_decay(config: Config):
    """Nothing decays that SAM 2 or transformers exclude by their own rules; embeddings decay, as with both."""
    config.trainable = [*PARTS]
    config.rates = {"mlp1": 1e-4}
    model = build("tiny")
    set_trainable(model, config.trainable, r=4, alpha=8, dropout=0.0)
    groups = make_optimizer(model, config).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert decay.keys() == {id(p) for p in trains.values()} and {*decay.values()} == {config.weight_decay, 0.0}
    decaying = {name for name, p in trains.items() if decay[id(p)]}
    # SAM 2's training configuration: param_names ["*bias*"], module_cls_names ["torch.nn.LayerNorm"].
    norms = {
        f"{m}.{n}" for m, o in model.named_modules() if isinstance(o, nn.LayerNorm) for n, _ in o.named_parameters()
    }
    assert not decaying & {name for name in trains if "bias" in name or name in norms}
    patterns = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # of transformers' Trainer
    assert decaying <= {*get_parameter_names(model, [nn.LayerNorm], patterns)}
    learned = [name for name in trains if re.search("embed_tokens|lm_head|mask_tokens|lora_[AB]", name)]
    assert len(learned) > 10 and {*learned} <= decaying
    assert {name for name in trains if name not in decaying} >= {n for n in trains if re.search("norm|bias|ls1|ls2", n)}
    assert {group["lr"] for group in groups} == {config.lr, 1e-4}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("on", ["matrices", "all"])
def test_what_decays_shrinks_by_rate_times_decay(make_loop, config: Config, name: str, on: str):
    config.optimizer = name
    config.weight_decay_on = on
    config.lr = 0.1
    config.weight_decay = 0.5
    loop = make_loop(config)
    before = {n: p.detach().clone() for n, p in loop.named_parameters() if p.requires_grad}
    for parameter in loop.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    make_optimizer(loop.model, config).step()
    for key, parameter in loop.named_parameters():
        if key in before:
            factor = 0.95 if before[key].ndim > 1 or on == "all" else 1.0
            assert torch.allclose(parameter, factor * before[key], rtol=1e-6), key
    assert {p.ndim > 1 for p in before.values()} == {True, False}


def test_a_checkpoint_of_other_groups_is_restored_by_name(make_loop, config: Config, tmp_path):
    """Such a checkpoint was written when each part was a single group."""
    config.lr = 1e-3
    config.rates = {"mlp1": 1e-4}
    parts = trained(make_loop, Config(**{**vars(config), "weight_decay_on": "all"}), 2)
    schedule = parts.schedule()
    assert len(schedule["base_lrs"]) == len(config.trainable)
    origin = Origin.of(config, 2, RECIPES["default"], [])
    write(tmp_path, parts.tensors(), State(2, {}, 2, None, schedule, {}, []), origin, [])
    other = trained(make_loop, config, 0)
    other.read(tmp_path)
    assert len(other.optimizer.param_groups) > len(config.trainable)
    moments, expected = (one.tensors()["optimizer.safetensors"] for one in (other, parts))
    assert moments.keys() == expected.keys() and all(torch.equal(moments[key], expected[key]) for key in expected)
    rates = {float(group["initial_lr"]): float(group["lr"]) for group in other.optimizer.param_groups}
    assert rates == pytest.approx({1e-3: 1e-3 / 3, 1e-4: 1e-4 / 3})
    more(other, 1)  # goes on: the schedule too
    assert other.scheduler.last_epoch == 3 and other.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_8_bits_per_moment_take_a_quarter_and_train_alike(make_loop, config: Config):
    config.lr = 1e-3
    config.rates = {"mlp1": 1e-4}
    plain, small = (trained(make_loop, Config(**{**vars(config), "optimizer": o}), 4) for o in ("adamw", "adamw8bit"))
    full, coded = (parts.tensors()["optimizer.safetensors"] for parts in (plain, small))
    for name, moment in full.items():
        if moment.numel() >= 4096 and moment.numel() % 256 == 0:  # a byte a value, a scale every 256; small ones stay
            sizes = [coded[f"{name}#{part}"].nbytes for part in ("codes", "scale")]
            assert sizes == [moment.nbytes // 4, moment.nbytes // 256], name
        else:
            assert coded[name].nbytes == moment.nbytes, name
    start = dict(make_loop(config).named_parameters())
    pairs = [
        (a, b, start[n]) for (n, a), b in zip(plain.module.named_parameters(), small.module.parameters(), strict=True)
    ]
    far = torch.stack([(a - b).norm() for a, b, _ in pairs]).norm()
    moved = torch.stack([(a - s).norm() for a, _, s in pairs]).norm()
    assert 0 < far < 0.05 * moved
    rates = [[float(group["lr"]) for group in parts.optimizer.param_groups] for parts in (plain, small)]
    assert rates[0] == pytest.approx(rates[1]) and min(rates[0]) == pytest.approx(max(rates[0]) / 10)


def test_moments_in_8_bits_are_restored_bit_for_bit(make_loop, config: Config, tmp_path):
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
