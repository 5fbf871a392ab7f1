"""Several objectives in one optimiser step, and the projection of one gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from shards.errors import UserError
from trainer.config import Config, Share, load_config
from trainer.data.loader import Batch
from trainer.objectives.backward import Backward, accumulation_steps
from trainer.train import reached

TEXTS = [["the left eye."]]


@pytest.fixture
def batch(batch: Batch) -> Batch:
    """A sample will do."""
    alone = {k: v[:1] if isinstance(v, torch.Tensor | list) else v for k, v in batch.items()}
    return {**alone, "image_of_object": torch.tensor([0])}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Served:
    """A stream of the same batch for each objective in turn."""

    def __init__(self, batch: Batch, names: list[str]) -> None:
        self._batch, self._names = batch, names

    def step(self) -> Iterator[tuple[str, Batch]]:
        for name in self._names:
            yield name, self._batch


def gradients(config: Config, make_loop, batch: Batch, names: list[str]) -> tuple[dict, dict, dict]:
    config.mixed_precision = "no"
    loop = make_loop(config)
    trainable = {n: p for n, p in loop.named_parameters() if p.requires_grad}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation_steps(config))
    backward = Backward(accelerator, accelerator.prepare(loop), [*trainable.values()], config)
    losses, _, keys = backward(Served({**batch, "texts": TEXTS}, names))
    return {n: p.grad.clone() for n, p in trainable.items()}, losses, keys


def alone(config: Config, make_loop, batch: Batch, objective: str) -> dict[str, torch.Tensor]:
    loop = make_loop(config)
    loop({**batch, "texts": TEXTS}, objective)["loss"].backward()
    return {n: p.grad for n, p in loop.named_parameters() if p.requires_grad}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_mix_adds_weighted_gradients_of_mean_losses(make_loop, config: Config, batch: Batch):
    config.accumulation = 2
    config.mix = {"describe": Share(weight=0.5), "segment": Share(weight=2.0)}
    met, losses, keys = gradients(config, make_loop, batch, ["describe", "describe", "segment", "segment"])
    first, second = (alone(config, make_loop, batch, name) for name in ("describe", "segment"))
    assert all(close(met[n], 0.5 * first[n] + 2 * second[n]) for n in met)
    assert losses["loss"] == pytest.approx(0.5 * losses["describe/loss"] + 2 * losses["segment/loss"])
    assert keys == {"describe": batch["keys"] * 2, "segment": batch["keys"] * 2}
    assert {"describe/caption", "segment/bce", "segment/lang"} <= losses.keys()


def test_one_objective_keeps_its_plain_names(make_loop, config: Config, batch: Batch):
    config.accumulation, config.objective = 2, "describe"
    met, losses, _ = gradients(config, make_loop, batch, ["describe", "describe"])
    wanted = alone(config, make_loop, batch, "describe")
    assert all(close(met[n], wanted[n]) for n in met)
    assert losses.keys() == {"loss", "caption"}


def test_the_reverse_loops_gradient_is_made_orthogonal(make_loop, config: Config, batch: Batch):
    config.accumulation, config.project = 1, True
    config.mix = {"reverse": Share(weight=0.5), "segment": Share()}
    assert [*config.objectives()] == ["segment", "reverse"]
    met, losses, _ = gradients(config, make_loop, batch, ["segment", "reverse"])
    main, reverse = (alone(config, make_loop, batch, name) for name in ("segment", "reverse"))
    flat = [torch.cat([g[n].flatten() for n in met]).double() for g in (main, reverse, met)]
    others, own = flat[0], 0.5 * flat[1]
    wanted = others + own - (own @ others) / (others @ others) * others
    assert (own @ others).abs() > 1e-3 * own.norm() * others.norm()  # else there was nothing to take away
    assert torch.allclose(flat[2], wanted, rtol=1e-3, atol=1e-7)
    assert ((flat[2] - others) @ others).abs() < 1e-5 * own.norm() * others.norm()
    cosine = (own @ others) / (own.norm() * others.norm())
    assert losses["reverse/alignment"].item() == pytest.approx(cosine.item(), rel=1e-3)


def test_parts_that_no_loss_reaches_do_not_train():
    plain = reached(load_config(["objective=dual"]))
    assert plain.trainable == ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"]
    assert reached(load_config(["objective=describe"])).trainable == ["lora", "mlp1"]
    assert reached(load_config(["mix={describe:{},segment:{}}"])).trainable == plain.trainable
    with pytest.raises(UserError, match="nothing to train"):
        reached(load_config(["objective=describe", "trainable=[sam_mask_decoder]"]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mix={dul:{}}", "no such objective"),
        ("mix={dual:{weight:0}}", "mix.dual.weight"),
        ("mix={dual:{wieght:1}}", "wieght"),
        ("project=true", "nothing to be orthogonal to"),
        ("rates={vision_model: 1e-4}", "a rate for a part that does not train"),
        ("rates={lora: 0}", "rates.lora"),
    ],
)
def test_mistakes_in_a_mix_and_in_rates(given: str, said: str):
    with pytest.raises(UserError, match=said):
        load_config([given])
