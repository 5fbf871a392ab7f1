"""Several objectives in one optimiser step, and the projection of one gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from shards.errors import UserError
from tests.batches import make_loader, one_sample
from tests.conversations import about_objects, conversation_batch
from tests.joined import Joined
from tests.trainer.conftest import build_step
from tests.trainer.runs import environment_of
from trainer.build import drop_unreached_parts
from trainer.config import Config, LoraConfig, ObjectiveConfig, load_config
from trainer.conversations.options import ConversationOptions
from trainer.data.batch import Batch, PairBatch
from trainer.data.loader import Loader
from trainer.data.stream import Stream
from trainer.fsdp import full_tensor
from trainer.model.sa2va import build
from trainer.objectives import load_objective
from trainer.objectives.backward import Backward, accumulation_steps
from trainer.objectives.step import Step
from trainer.optimizer import make_optimizer
from trainer.strategy import lay_out, make_accelerator

TEXTS = [["the left eye."]]


@pytest.fixture
def single(batch: PairBatch) -> PairBatch:
    """One sample, with a text."""
    return replace(one_sample(batch), texts=TEXTS)


class Served:
    """A stream of batches for objectives."""

    def __init__(self, batches: list[tuple[str, Batch]]) -> None:
        self._batches = batches

    def counts(self) -> dict[str, dict[str, int]]:
        found: dict[str, Counter[str]] = {}
        for name, batch in self._batches:
            found.setdefault(name, Counter()).update(batch.counts)
        return {name: dict(counts) for name, counts in found.items()}

    def step(self) -> Iterator[tuple[str, Batch]]:
        yield from self._batches


def asked(batch: Batch, loop: Step, objective: str) -> Batch:
    """The batch, as conversations where the objective reads such."""
    if isinstance(batch, PairBatch) and load_objective(objective).reads_conversations:
        return about_objects(batch, loop.model.prompts, objective)
    return batch


def gradients(config: Config, make_loop, batch: PairBatch, names: list[str]) -> tuple[dict, dict, dict]:
    config.mixed_precision = "no"
    loop = make_loop(config)
    trainable = {n: p for n, p in loop.named_parameters() if p.requires_grad}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation_steps(config))
    backward = Backward(accelerator, accelerator.prepare(loop), [*trainable.values()], config)
    losses, _, keys = backward(Served([(name, asked(batch, loop, name)) for name in names]))
    return {n: p.grad.clone() for n, p in trainable.items()}, losses, keys


def alone(config: Config, make_loop, batch: PairBatch, objective: str) -> dict[str, torch.Tensor]:
    loop = make_loop(config)
    loop(asked(batch, loop, objective), objective)["loss"].backward()
    return {n: p.grad for n, p in loop.named_parameters() if p.requires_grad}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_mix_adds_weighted_gradients_of_mean_losses(make_loop, config: Config, single: PairBatch):
    config.accumulation = 2
    config.mix = {"describe": ObjectiveConfig(weight=0.5), "segment": ObjectiveConfig(weight=2.0)}
    mixed, losses, keys = gradients(config, make_loop, single, ["describe", "describe", "segment", "segment"])
    first, second = (alone(config, make_loop, single, name) for name in ("describe", "segment"))
    assert all(close(mixed[n], 0.5 * first[n] + 2 * second[n]) for n in mixed)
    assert losses["loss"] == pytest.approx(0.5 * losses["describe/loss"] + 2 * losses["segment/loss"])
    assert keys == {"describe": single.keys * 2, "segment": single.keys * 2}
    assert {"describe/caption", "segment/bce", "segment/lang"} <= losses.keys()


def test_losses_of_a_single_objective_have_no_prefix(make_loop, config: Config, single: PairBatch):
    config.accumulation = 2
    config.objective = "describe"
    mean, losses, _ = gradients(config, make_loop, single, ["describe", "describe"])
    expected = alone(config, make_loop, single, "describe")
    assert all(close(mean[n], expected[n]) for n in mean)
    assert losses.keys() == {"loss", "caption"}


def test_the_reverse_loops_gradient_is_made_orthogonal(make_loop, config: Config, single: PairBatch):
    config.accumulation = 1
    config.project = True
    config.mix = {"reverse": ObjectiveConfig(weight=0.5), "segment": ObjectiveConfig()}
    assert [*config.objectives()] == ["segment", "reverse"]
    projected, losses, _ = gradients(config, make_loop, single, ["segment", "reverse"])
    main, reverse = (alone(config, make_loop, single, name) for name in ("segment", "reverse"))
    flat = [torch.cat([g[n].flatten() for n in projected]).double() for g in (main, reverse, projected)]
    others = flat[0]
    weighted = 0.5 * flat[1]
    expected = others + weighted - (weighted @ others) / (others @ others) * others
    assert (weighted @ others).abs() > 1e-3 * weighted.norm() * others.norm()  # else there was nothing to take away
    assert torch.allclose(flat[2], expected, rtol=1e-3, atol=1e-7)
    assert ((flat[2] - others) @ others).abs() < 1e-5 * weighted.norm() * others.norm()
    cosine = (weighted @ others) / (weighted.norm() * others.norm())
    assert losses["reverse/alignment"].item() == pytest.approx(cosine.item(), rel=1e-3)


MIX = {"segment": ObjectiveConfig(weight=2.0), "reverse": ObjectiveConfig(weight=0.5)}
LOGGED = ("bce", "dice", "lang", "bce_uniform", "dice_uniform", "caption")
Gradients = dict[str, torch.Tensor]


def load(folder: Path, name: str, **how: int) -> Loader:
    """Return a loader of up to 6 objects a sample.

    The first two samples have 4 and 1 (by default), or 5 and 6 (seed 38).
    """
    objective = load_objective(name)
    common = {"fields": objective.training_fields, "need": objective.needs, "threads": 0, "objects_per_sample": 6}
    if objective.reads_conversations:
        options = ConversationOptions(phrases=6, vary_wording=False)
        common |= {"conversations": options, "kind": objective.conversation_kind, "prompts": build("tiny").prompts}
    return make_loader([folder], **common, **({"seed": 6} | how))


def objects_of(batch: Batch) -> int:
    return batch.counts["objects"] if isinstance(batch, PairBatch) else batch.counts["masks"]


def split_step(
    accelerator: Accelerator, config: Config, folder: Path, seed: int = 6
) -> tuple[Gradients, dict[str, torch.Tensor], list[int]]:
    """The first step of a run, in batches of a sample: gradients, what is logged, and the objects of each batch."""
    accelerator.step = 0
    accelerator.gradient_accumulation_steps = accumulation_steps(config)
    step = build_step(config)
    trainable = {n: p for n, p in step.named_parameters() if p.requires_grad}
    how = {"batch_size": 1, "accumulation": config.accumulation, "seed": seed}
    how |= {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    stream = Stream({name: load(folder, name, **how) for name in config.objectives()}, config.accumulation)
    counts: list[int] = []
    step.register_forward_pre_hook(lambda _, inputs: counts.append(objects_of(inputs[0])))
    losses, _, _ = Backward(accelerator, accelerator.prepare(step), [*trainable.values()], config)(stream)
    return {n: p.grad for n, p in trainable.items()}, losses, counts


def whole_step(config: Config, folder: Path, name: str, seed: int = 6) -> tuple[Gradients, dict[str, torch.Tensor]]:
    """The same of one objective by hand: 2 samples in one batch, whose loss is a mean over its objects."""
    step = build_step(config)
    batch = next(load(folder, name, batch_size=2, seed=seed).epoch(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        result = step(batch, name)
    (config.objectives()[name].weight * result["loss"]).backward()
    return {n: p.grad for n, p in step.named_parameters() if p.requires_grad}, result


def flat(gradients: Gradients) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "counted", "precision", "bound"),
    [(6, [4, 1], "no", 1e-4), (6, [4, 1], "bf16", 0.04), (38, [5, 6], "no", 1e-4)],
)
def test_accumulated_batches_average_over_the_objects_of_all(
    config: Config, unequal_set: Path, seed: int, counted: list[int], precision: str, bound: float
):
    config.objective = "segment"
    config.mixed_precision = precision
    config.accumulation = 2
    expected, logged = whole_step(config, unequal_set, "segment", seed)
    split, losses, counts = split_step(Accelerator(cpu=True), config, unequal_set, seed)
    assert counts == counted
    assert (flat(split) - flat(expected)).norm() < bound * flat(expected).norm()
    for name in ("loss", *LOGGED[:-1]):
        assert losses[name].item() == pytest.approx(logged[name].item(), rel=bound), name


CASES = {
    "mix": Config(mix=MIX, accumulation=1),
    "projected": Config(mix=MIX, accumulation=1, project=True),
}


def save_steps(folder: str, out: str) -> None:
    """Save the step of each case. This runs in each of two processes that are joined, with a sample on each."""
    accelerator = Accelerator(cpu=True)
    for case, config in CASES.items():
        gradients, losses, counts = split_step(accelerator, small(config), Path(folder))
        logged = {name: accelerator.reduce(value, "mean") for name, value in losses.items()}
        torch.save((gradients, logged, counts), f"{out}/{case}-{accelerator.process_index}.pt")


def small(config: Config) -> Config:
    lora = LoraConfig(r=4, alpha=8, dropout=0.0)
    return replace(config, lora=lora, num_points=512, mixed_precision="no")


@pytest.mark.slow
def test_two_processes_average_over_the_objects_of_both(unequal_set: Path, tmp_path: Path):
    """In a mix of objectives, and with projected gradients."""
    joined = Joined(2, save_steps, str(unequal_set), str(tmp_path), log=tmp_path / "said")
    whole = {name: whole_step(small(CASES["mix"]), unequal_set, name) for name in MIX}
    others = flat(whole["segment"][0])
    reverse = flat(whole["reverse"][0])
    expected = {
        "mix": others + reverse,
        "projected": others + reverse - (reverse @ others) / (others @ others) * others,
    }
    assert joined.wait() == [0, 0], (tmp_path / "said").read_text()[-2000:]
    for case, gradient in expected.items():
        saved = [torch.load(tmp_path / f"{case}-{rank}.pt") for rank in (0, 1)]
        assert [counts for *_, counts in saved] == [[4, 4], [1, 1]], "nothing was unequal"
        for summed, logged, _ in saved:
            assert (flat(summed) - gradient).norm() < 1e-4 * gradient.norm(), case
            for name, (_, result) in whole.items():
                for part in {*LOGGED} & {*result}:
                    assert logged[f"{name}/{part}"].item() == pytest.approx(result[part].item(), rel=1e-4)


def test_parts_that_no_loss_reaches_do_not_train():
    plain = drop_unreached_parts(load_config(["objective=dual"]))
    assert plain.trainable == ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"]
    assert drop_unreached_parts(load_config(["objective=describe"])).trainable == ["lora", "mlp1"]
    assert drop_unreached_parts(load_config(["mix={describe:{},segment:{}}"])).trainable == plain.trainable
    with pytest.raises(UserError, match="nothing to train"):
        drop_unreached_parts(load_config(["objective=describe", "trainable=[sam_mask_decoder]"]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mix={dul:{}}", "no such objective"),
        ("mix={dual:{weight: 0}}", "mix.dual.weight"),
        ("mix={dual:{wieght:1}}", "wieght"),
        ("project=true", "nothing to be orthogonal to"),
        ("rates={vision_model: 1e-4}", "a rate for a part that does not train"),
        ("rates={lora: 0}", "rates.lora"),
    ],
)
def test_mistakes_in_a_mix_and_in_rates(argument: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config([argument])


SPLIT = (((0, 1), ()), ((2,), (3, 6)))
"""Conversations by process and batch: two of photographs, one with masks, beside a text; none beside others."""
TRAINED = ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"]
CONVERSE: dict[str, Config] = {
    "sa2va": Config(objective="converse", loss_means="sa2va"),
    "mix": Config(mix={"converse": ObjectiveConfig(weight=2.0), "dual": ObjectiveConfig()}),
    "projected": Config(mix={"converse": ObjectiveConfig(), "reverse": ObjectiveConfig(weight=0.5)}, project=True),
    "towers": Config(objective="converse", trainable=[*TRAINED, "vision_model", "sam_image_encoder"]),
}


def conversation_steps(
    accelerator: Accelerator, case: str, pair: PairBatch, chosen: Sequence[Sequence[int]], pairs: Sequence[PairBatch]
) -> tuple[Gradients, dict[str, torch.Tensor]]:
    """A step of batches with the conversations `chosen`, in a mix with `pairs`: gradients, and what is logged."""
    config = replace(small(CONVERSE[case]), max_caption_tokens=3, accumulation=len(chosen))
    accelerator.step = 0
    accelerator.gradient_accumulation_steps = accumulation_steps(config)
    step = build_step(config)
    talks = [conversation_batch(pair, step.model.prompts, tuple(numbers)) for numbers in chosen]
    batches: list[tuple[str, Batch]] = [("converse", talk) for talk in talks]
    batches += [(name, one) for name in config.objectives() if name != "converse" for one in pairs]
    prepared, _ = lay_out(accelerator, step, make_optimizer(step.model, config))
    trainable = {n: p for n, p in step.named_parameters() if p.requires_grad}
    losses, _, _ = Backward(accelerator, prepared, [*trainable.values()], config)(Served(batches))
    means = {name: accelerator.reduce(value, "mean") for name, value in losses.items()}
    return {n: full_tensor(p.grad) for n, p in trainable.items() if p.grad is not None}, means


def save_conversation_steps(folder: str, cases: Sequence[str]) -> None:
    """Save the step of each case. This runs in each of two processes that are joined."""
    accelerator = make_accelerator(small(CONVERSE[cases[0]]))
    rank = accelerator.process_index
    pair = torch.load(f"{folder}/pair.pt", weights_only=False)
    for case in cases:
        found = conversation_steps(accelerator, case, pair, SPLIT[rank], [one_sample(pair, rank)] * 2)
        torch.save(found, f"{folder}/{case}-{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "cases"),
    [("ddp.yaml", ("sa2va", "mix", "projected")), ("fsdp2.yaml", ("sa2va", "towers"))],
)
def test_two_processes_average_over_the_rows_tokens_and_masks_of_both(
    batch: PairBatch, tmp_path: Path, launch: str, cases: tuple[str, ...]
):
    """In each batch one process lacks masks, pictures, or rows; none waits for the other."""
    batch = replace(batch, meta=[{}, {}])
    torch.save(batch, tmp_path / "pair.pt")
    said = tmp_path / "said"
    joined = Joined(2, save_conversation_steps, str(tmp_path), cases, log=said, environment=environment_of(launch))
    every = [number for numbers in SPLIT for chosen in numbers for number in chosen]
    alone = Accelerator(cpu=True)
    whole = {case: conversation_steps(alone, case, batch, [sorted(every)], [batch]) for case in cases}
    assert joined.wait(200) == [0, 0], said.read_text()[-3000:]
    for case, (gradients, logged) in whole.items():
        expected = flat(gradients)
        for rank in (0, 1):
            found, means = torch.load(tmp_path / f"{case}-{rank}.pt")
            assert {n for n in gradients if n not in found and gradients[n].any()} == set(), case
            summed = torch.cat([found.get(n, torch.zeros_like(g)).flatten() for n, g in sorted(gradients.items())])
            assert (summed.double() - expected).norm() < 1e-4 * expected.norm(), (case, rank)
            for name in (*LOGGED, "loss", "converse/lang", "converse/bce"):
                if name in logged:
                    assert means[name].item() == pytest.approx(logged[name].item(), rel=1e-4), (case, name)


def test_losses_without_a_unit_are_left_out(make_loop, config: Config, batch: PairBatch):
    """A step of a text, of pictures without masks, and of nothing at all."""
    for chosen, kept in (((2,), {"loss", "lang"}), ((1, 3), {"loss", "lang"}), ((), {"loss"})):
        loop = make_loop(config)
        talks = conversation_batch(batch, loop.model.prompts, chosen)
        config.objective = "converse"
        config.accumulation = 1
        _, losses, _ = gradients(config, make_loop, talks, ["converse"])
        assert losses.keys() == kept
