"""Losses of conversations, against an independent computation in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conversations import conversation_batch
from trainer import fsdp
from trainer.config import Config
from trainer.data.batch import ConversationBatch, PairBatch
from trainer.model.rows import IGNORE
from trainer.objectives.converse import Converse
from trainer.objectives.step import Step

UNITS = {"objects": {"lang": "rows", "bce": "masks"}, "sa2va": {"lang": "tokens", "bce": "frames"}}


def many_masks(batch: ConversationBatch) -> ConversationBatch:
    """The batch with six masks in its last picture: more than Sa2VA's training takes."""
    last = batch.picture_of_mask[-1:]
    shifted = [batch.masks[-1].roll(100 * k, 0) for k in range(1, 6)]
    return replace(
        batch,
        masks=torch.cat([batch.masks, torch.stack(shifted)]),
        seg_of_mask=torch.cat([batch.seg_of_mask, batch.seg_of_mask[-1:].expand(5)]),
        picture_of_mask=torch.cat([batch.picture_of_mask, last.expand(5)]),
    )


def bilinear(logits: Tensor, x: Tensor, y: Tensor, beyond: str) -> Tensor:
    """Values of logits (h, w) at points, by the four pixels around each."""
    size = logits.shape[0]
    column = x * size - 0.5
    row = y * size - 0.5
    total = torch.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            r = row.floor().long() + down
            c = column.floor().long() + right
            share = (1 - (row - r).abs()) * (1 - (column - c).abs())
            inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            value = logits[r.clamp(0, size - 1), c.clamp(0, size - 1)]
            total = total + share * (value if beyond == "border" else value * inside)
    return total


def by_hand(
    loop: Step, batch: ConversationBatch, means: str, points: Sequence[Tensor], numbers: Sequence[int], logits: Tensor
) -> dict[str, Tensor]:
    """The losses, from the token logits (R, L, V) of all positions and mask logits (N, 256, 256), in float64.

    `points` (P, 2) and `numbers` are those of the masks in the order in which they were compared.
    """
    tokens, masks = logits
    by_row = []
    for row, of_row in zip(batch.rows, tokens, strict=True):
        shares = of_row.log_softmax(-1)
        by_row.append([-shares[k - 1, label] for k, label in enumerate(row.labels) if label != IGNORE])
    every = [loss for losses in by_row for loss in losses]
    lang = sum(every) / len(every) if means == "sa2va" else sum(sum(one) / len(one) for one in by_row) / len(by_row)
    bce, dice = [], []
    for number, at in zip(numbers, points, strict=True):
        x, y = at.double().unbind(1)
        value = bilinear(masks[number], x, y, "border" if means == "objects" else "zeros")
        truth = batch.masks[number][(y * 1024).long(), (x * 1024).long()].double()
        share = 1 / (1 + (-value).exp())
        bce.append(-(truth * share.log() + (1 - truth) * (1 - share).log()))
        dice.append(1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1))
    guard = 1e-4 if means == "sa2va" else 0
    points_in_all = sum(map(len, bce))
    return {
        "lang": lang,
        "bce": sum(map(torch.sum, bce)) / (points_in_all + guard),
        "dice": sum(dice) / (len(dice) + guard),
    }


@pytest.mark.parametrize("means", ["objects", "sa2va"])
def test_losses_and_their_gradients_equal_the_formulas(
    make_loop, config: Config, batch: PairBatch, means: str, monkeypatch: pytest.MonkeyPatch
):
    """Sa2VA's own training has DiceLoss (naive_dice, eps 1) and CrossEntropyLoss (use_sigmoid), both over N + 1e-4."""
    config.loss_means = means
    loop = make_loop(config)
    passes = loop.passes
    talks = many_masks(conversation_batch(batch, loop.model.prompts))
    seen = {}

    def spied(logits, masks, points, *how):
        seen["points"] = points
        return point_losses(logits, masks, points, *how)

    from trainer.objectives import passes as module
    from trainer.objectives.losses import point_losses

    monkeypatch.setattr(module, "point_losses", spied)
    predicted = []
    original = type(passes).predict

    def kept(self, batch, chosen=None):
        found = original(self, batch, chosen)
        predicted.append((found, chosen))
        found.masks.retain_grad()
        found.logits.retain_grad()
        return found

    monkeypatch.setattr(type(passes), "predict", kept)
    objective = Converse(passes)
    draws = objective.generators(talks)
    losses = objective.losses(talks, draws)
    found, chosen = predicted[0]
    sum(losses[name] for name in ("lang", "bce", "dice")).backward()

    number_of = {number: place for place, number in enumerate(chosen.tolist())}
    every = original(passes, talks)
    tokens = every.logits.detach().double().requires_grad_()
    masks = every.masks.detach().double().requires_grad_()
    laid = []
    place = 0
    for row in talks.rows:
        of_row = {k - 1: place + n for n, k in enumerate(k for k, label in enumerate(row.labels) if label != IGNORE)}
        place += len(of_row)
        zero = torch.zeros(tokens.shape[1], dtype=torch.float64)
        laid.append(torch.stack([tokens[of_row[k]] if k in of_row else zero for k in range(len(row.ids))]))
    numbers = [*range(10)] if means == "objects" else taken_by_hand(talks, objective)
    expected = by_hand(loop, talks, means, seen["points"].unbind(0), numbers, (laid, masks))
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(expected.values()).backward()
    assert torch.allclose(found.logits.grad.double(), tokens.grad, rtol=1e-5, atol=1e-9)
    gradients = masks.grad[[*number_of]]
    assert (found.masks.grad.double() - gradients).norm() < 1e-5 * gradients.norm()
    assert gradients.flatten(1).norm(dim=1).min() > 0


def taken_by_hand(batch: ConversationBatch, objective: Converse) -> list[int]:
    """Two masks in each of two frames, repeated to five; of the six of the last picture, five."""
    assert batch.picture_of_mask.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    drawn = torch.randperm(6, generator=objective.generators(batch)[4])[:5]
    return [0, 1, 0, 1, 0, 2, 3, 2, 3, 2, *(4 + drawn).tolist()]


@pytest.mark.parametrize(("means", "masks"), [("objects", 10), ("sa2va", 9)])
def test_each_part_of_the_model_runs_once_over_the_batch(
    make_loop, config: Config, batch: PairBatch, means: str, masks: int
):
    """Pictures that several rows show are encoded once; no mask is decoded twice, nor one that is not compared."""
    config.loss_means = means
    loop = make_loop(config)
    model = loop.model
    sam = model.grounding_encoder.sam2_model
    talks = many_masks(conversation_batch(batch, model.prompts))
    called: list[tuple[str, int, bool]] = []
    for name, part in (("vision", model.vision_model), ("sam", sam.image_encoder), ("masks", sam.sam_mask_decoder)):

        def note(module, args, kwargs, name=name):
            called.append((name, len([*args, *kwargs.values()][0]), torch.is_grad_enabled()))

        part.register_forward_pre_hook(note, with_kwargs=True)
    loop(talks, "converse")
    assert called == [("vision", len(talks.pixel_values), False), ("sam", 3, False), ("masks", masks, True)]
    assert len(talks.pixel_values) == 4 < sum(len(talk.frames) for talk in talks.conversations)


@pytest.mark.parametrize("trained", [(), ("vision_model", "sam_image_encoder", "token_embeddings")])
def test_gradients_are_ready_in_one_order_whatever_a_batch_lacks(
    make_loop, config: Config, batch: PairBatch, trained: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """As a process sees it of which another has pictures, rows and masks. DeepSpeed adds up gradients in this order."""
    monkeypatch.setattr(fsdp, "any_process_of", lambda module: lambda here: True)
    config.trainable = [*config.trainable, *trained]
    orders = []
    for chosen in ((0, 4), (1, 3), (2,), ()):
        loop = make_loop(config)
        order: list[str] = []
        for name, parameter in loop.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, name=name, order=order: order.append(name))
        result = loop(conversation_batch(batch, loop.model.prompts, chosen), "converse")
        result["loss"].backward()
        orders.append(order)
        assert result["loss"].isfinite() and len(order) == sum(p.requires_grad for p in loop.parameters())
        assert chosen or result["loss"] == 0
    assert all(order == orders[0] for order in orders[1:])


def test_what_is_drawn_for_a_mask_depends_on_its_sample_alone(make_loop, batch: PairBatch):
    objective = Converse(make_loop().passes)
    prompts = objective.passes.model.prompts

    def drawn(talks: ConversationBatch) -> list[float]:
        return [float(torch.rand((), generator=g)) for g in objective.generators(talks)]

    every = drawn(conversation_batch(batch, prompts))
    first, second = (conversation_batch(batch, prompts, chosen) for chosen in ((2, 0), (6,)))
    assert len({*every}) == 5 and every == drawn(first) + drawn(second)
    assert not {*every} & {*drawn(replace(first, copies=[1, 1]))}
    assert not {*every} & {*drawn(replace(first, position={"epoch": 1, "samples": 0}))}
