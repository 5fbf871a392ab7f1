"""The dual loop: which loss gives which parameter a gradient."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from shards.errors import UserError
from tests.batches import one_sample, with_frame
from tests.conversations import about_objects
from trainer.config import Config
from trainer.data.batch import PairBatch
from trainer.model.captioner import Caption
from trainer.model.prompts import Prompts
from trainer.model.tokenizer import byte_tokenizer
from trainer.objectives.dual import SampledCaptions, corrupt, sample_captions
from trainer.objectives.gumbel import straight_through_gumbel
from trainer.objectives.losses import point_losses, uncertain_points
from trainer.objectives.noise import object_generators
from trainer.objectives.step import Step


def mask_loss(loop: Step, batch: PairBatch, phrases: torch.Tensor, words: list[list[int]]) -> torch.Tensor:
    """BCE + Dice of pass B for these words, on frame 2."""
    rows = [loop.model.prompts.segment(key, caption) for key, caption in zip(batch.keys, words, strict=True)]
    visual_tokens = loop.model.encode_image(batch.frames[1].pixel_values)
    sam_features = loop.model.encode_sam(batch.frames[1].g_pixel_values)
    logits, _ = loop.passes.predict_masks(batch, rows, visual_tokens, sam_features, phrases)
    points = uncertain_points(logits.detach(), 512, 3.0, 0.75, object_generators(batch, 0))
    bce, dice = point_losses(logits, batch.frames[1].masks, points)
    return (bce + dice).mean()


def speak(loop: Step, batch: PairBatch, captions: list[Caption]) -> SampledCaptions:
    return sample_captions(
        loop.passes, batch, loop.model.encode_image(batch.frames[0].pixel_values), captions, object_generators(batch, 0)
    )


@pytest.fixture
def captions(model) -> list[Caption]:
    """The first ends with the end token, the second was cut by the limit; unequal lengths."""
    return [Caption(model.prompts.encode("cat"), True), Caption(model.prompts.encode("helmet"), False)]


def tokens(captions: list[Caption], model) -> list[int]:
    return [token for caption in captions for token in [*caption.words, *caption.end(model.prompts)]]


@pytest.mark.parametrize("objective", ["dual", "segment"])
def test_losses_are_finite_add_up_and_reach_all_trainable_parameters(make_loop, config, batch: PairBatch, objective):
    config.lambda_mask = 0.7
    config.lambda_dice = 1.3
    config.lambda_lang = 0.5
    config.lambda_anchor = 0.2
    loop = make_loop(config)
    asked = batch if objective == "dual" else about_objects(batch, loop.model.prompts, objective)
    result = loop(asked, objective)
    weights = {"bce": 0.7, "dice": 1.3, "lang": 0.5} | ({"anchor": 0.2} if objective == "dual" else {})
    total = sum(weight * result[name].item() for name, weight in weights.items())
    assert result["loss"].item() == pytest.approx(total, rel=1e-5)
    result["loss"].backward()
    for name, parameter in loop.named_parameters():
        # DDP waits for every trainable parameter, so none may be left out; and nothing frozen may get a gradient.
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_parameters_without_gradient_are_those_of_unchosen_masks(make_loop, batch: PairBatch):
    """Of the decoder's three masks only the chosen one gets a gradient; all other parameters get one."""
    loop = make_loop()
    loop(batch, "dual")["loss"].backward()
    still = [n for n, p in loop.named_parameters() if p.requires_grad and not p.grad.any()]
    masks = {int(re.search(r"output_hypernetworks_mlps\.(\d)", name)[1]) for name in still}
    assert masks < {1, 2, 3}


def test_mask_loss_reaches_the_adapters_through_pass_a_alone(make_loop, batch: PairBatch, captions):
    loop = make_loop()
    spoken = speak(loop, batch, captions)
    # Pass B runs with detached weights: its own path to them is cut.
    frozen = {name: p.detach() for name, p in loop.named_parameters()}

    class PassB(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loop = loop

        def forward(self) -> torch.Tensor:
            return mask_loss(self.loop, batch, spoken.embeddings, spoken.words)

    loss = functional_call(PassB(), {f"loop.{name}": p for name, p in frozen.items()}, ())
    loss.backward()
    gradients = {n: p.grad for n, p in loop.named_parameters() if "lora_" in n}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert sum(g.abs().sum() for g in gradients.values()) > 0
    # Nothing but pass A is on this way: the mask decoder and the [SEG] MLP belong to pass B.
    assert all(p.grad is None for n, p in loop.named_parameters() if "sam_mask_decoder" in n or "text_hidden" in n)


def test_mask_loss_gives_the_end_token_and_what_follows_no_gradient(make_loop, batch: PairBatch, captions, model):
    loop = make_loop()
    spoken = speak(loop, batch, captions)
    (gradient,) = torch.autograd.grad(mask_loss(loop, batch, spoken.embeddings, spoken.words), spoken.logits)
    end = spoken.targets == model.prompts.end_ids[0]
    assert spoken.targets.tolist() == tokens(captions, model)
    assert torch.equal(end, ~spoken.is_word)
    assert end.sum() == 1
    assert not gradient[end].any()
    assert (gradient[~end].abs().sum(1) > 0).all()


def test_pass_b_attends_to_words_only(make_loop, batch: PairBatch, captions, monkeypatch: pytest.MonkeyPatch):
    """Attention of pass B is the question's length plus the words: the end token's place has none."""
    loop = make_loop()
    monkeypatch.setattr("trainer.objectives.dual.pseudo_captions", lambda *a: captions)
    seen_rows = []
    original = type(loop.model).embed_rows
    monkeypatch.setattr(
        type(loop.model),
        "embed_rows",
        lambda self, rows, *a, **k: seen_rows.append(rows) or original(self, rows, *a, **k),
    )
    loop(batch, "dual")
    rows = seen_rows[-1]
    prompts = loop.model.prompts
    lengths = rows.attention.each
    written = [prompts.decode(ids) for ids in rows.ids[0].split(lengths)]
    for length, text in zip(lengths, written, strict=True):
        assert re.search(r"</img>\n(Can you|Please|What is).*<\|im_end\|>\n<\|im_start\|>assistant\n", text, re.DOTALL)
        assert length == len(prompts.encode(text)) if text.isascii() else True
    first = sum(place < lengths[0] for place in rows.replaced.tolist())
    assert (first, len(rows.replaced)) == (3, 9)
    # No word is a mark, whatever the student's logits are.
    assert prompts.ordinary[rows.ids[0, rows.replaced]].all()


def test_frame_1_is_described_and_frame_2_segmented(make_loop, batch: PairBatch):
    loop = make_loop()
    batch = one_sample(batch)
    plain = loop(batch, "dual")
    first, second = batch.frames
    changed = with_frame(batch, 1, masks=~first.masks, g_pixel_values=255 - first.g_pixel_values)
    other = loop(with_frame(changed, 2, masks=~second.masks), "dual")
    for part in ("anchor", "lang"):  # frame 1's large picture and mask are not looked at
        assert torch.equal(other[part], plain[part])
    assert not torch.equal(other["bce"], plain["bce"])
    negative = loop(with_frame(batch, 1, pixel_values=-first.pixel_values), "dual")
    assert not torch.equal(negative["anchor"], plain["anchor"])


def test_the_anchor_is_the_cross_entropy_against_the_uncorrupted_caption(
    make_loop, config: Config, batch, captions, model
):
    config.corrupt_ratio = 1.0
    loop = make_loop(config)
    spoken = speak(loop, batch, captions)
    each = torch.nn.functional.cross_entropy(spoken.logits, spoken.targets, reduction="none")
    assert spoken.targets.tolist() == tokens(captions, model)
    assert spoken.anchor.item() == pytest.approx((each[:4].mean() + each[4:].mean()).item() / 2, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_corruption_replaces_its_share_of_words(make_loop, config: Config, model, ratio: float):
    config.corrupt_ratio = ratio
    loop = make_loop(config)
    fed = corrupt(loop.passes, [7] * 4000, torch.Generator().manual_seed(0))
    assert len(fed) == 4000
    changed = sum(a != 7 for a in fed) / 4000
    assert changed == pytest.approx(ratio * 255 / 256, abs=0.03)  # a random word may be the same word
    assert all(model.prompts.ordinary[t] for t in fed)


def test_the_student_input_is_the_corrupted_caption(make_loop, config: Config, batch: PairBatch, captions):
    config.corrupt_ratio = 0.0
    clean = speak(make_loop(config), batch, captions)
    config.corrupt_ratio = 1.0
    corrupted = speak(make_loop(config), batch, captions)
    assert torch.equal(clean.targets, corrupted.targets)
    assert torch.equal(clean.logits[0], corrupted.logits[0])  # the first word follows the question alone
    assert not torch.allclose(clean.logits[1], corrupted.logits[1])


def test_word_embeddings_are_bit_equal_to_the_table(make_loop, batch: PairBatch, captions):
    loop = make_loop()
    spoken = speak(loop, batch, captions)
    flat = [word for words in spoken.words for word in words]
    assert torch.equal(spoken.embeddings, loop.model.embedding.weight[flat])
    assert spoken.embeddings.dtype == torch.float32


def test_a_step_does_not_depend_on_how_samples_are_batched(make_loop, batch: PairBatch):
    """Two processes with one sample each compute what one process with both computes."""
    loop = make_loop()
    both = loop(batch, "dual")
    loop.zero_grad()
    both["loss"].backward()
    expected = {n: p.grad.clone() for n, p in loop.named_parameters() if p.grad is not None}
    loop.zero_grad()
    losses = []
    for i in (0, 1):
        result = loop(one_sample(batch, i), "dual")
        (result["loss"] / 2).backward()
        losses.append(result["loss"].item())
    assert sum(losses) / 2 == pytest.approx(both["loss"].item(), rel=1e-5)
    for name, parameter in loop.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-5), name


def test_several_objects_of_one_picture(make_loop, batch: PairBatch):
    two = replace(
        one_sample(batch),
        image_of_object=torch.tensor([0, 0]),
        texts=batch.texts,
        objects=[0, 1],
        turns=[0, 0],
    )
    for number, frame in enumerate(batch.frames, 1):
        two = with_frame(two, number, masks=frame.masks, prompt_masks=frame.prompt_masks)
    loop = make_loop()
    for objective in ("dual", "reverse"):
        assert loop(two, objective)["loss"].isfinite()
    assert loop.judge(two, "reverse").captions == ["The Left eye.", "a helmet"]


def test_bfloat16_autocast_trains_all_parameters(make_loop, batch: PairBatch, monkeypatch: pytest.MonkeyPatch):
    """Weights used under no_grad first must not be left in autocast's cache without their gradient. Noise is drawn and
    used in float32: in bfloat16 it has another distribution."""
    loop = make_loop()

    def spying(logits, table, uniform, *how):
        assert not torch.is_autocast_enabled("cpu")
        assert uniform.dtype == torch.float32 and (uniform != uniform.bfloat16()).float().mean() > 0.9
        return straight_through_gumbel(logits, table, uniform, *how)

    monkeypatch.setattr("trainer.objectives.dual.straight_through_gumbel", spying)
    with torch.autocast("cpu", torch.bfloat16):
        result = loop(one_sample(batch), "dual")
    assert all(value.dtype == torch.float32 for value in result.values())
    result["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loop.parameters() if p.requires_grad)
    assert any(p.grad.any() for n, p in loop.named_parameters() if "lora_A" in n)


def test_gradient_checkpointing_changes_no_gradient(make_loop, batch: PairBatch):
    gradients = []
    for checkpointing in (False, True):
        loop = make_loop()
        if checkpointing:
            loop.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        loop(one_sample(batch), "dual")["loss"].backward()
        gradients.append([p.grad for p in loop.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_objects_without_a_text_or_region_are_named(make_loop, batch: PairBatch):
    loop = make_loop()
    with pytest.raises(UserError, match=rf"sample {batch.keys[1]}: an object has no text"):
        loop(replace(batch, texts=[["a"], []]), "reverse")
    empty = batch.frames[0].prompt_masks.clone()
    empty[0] = False
    with pytest.raises(UserError, match=rf"sample {batch.keys[0]}, prompt_masks1: a region has no prompt cell"):
        loop(with_frame(batch, 1, prompt_masks=empty), "dual")


def test_a_single_frame_goes_through_the_vision_tower_once(
    make_loop, batch: PairBatch, monkeypatch: pytest.MonkeyPatch
):
    """Frame 2 of a sample that has one frame is frame 1; `pixel_values2` is not used."""
    loop = make_loop()
    twice = with_frame(batch, 2, pixel_values=batch.frames[0].pixel_values)
    expected = loop(twice, "dual")
    visual_tokens = []
    original = type(loop.model).encode_image
    monkeypatch.setattr(
        type(loop.model),
        "encode_image",
        lambda self, pictures: visual_tokens.append(len(pictures)) or original(self, pictures),
    )
    nothing = torch.full_like(batch.frames[1].pixel_values, torch.nan)
    single = loop(replace(with_frame(batch, 2, pixel_values=nothing), paired=torch.tensor([False, False])), "dual")
    assert visual_tokens == [2] and torch.equal(single["loss"], expected["loss"])
    half = torch.stack([nothing[0], batch.frames[0].pixel_values[1]])
    mixed = replace(with_frame(twice, 2, pixel_values=half), paired=torch.tensor([False, True]))
    visual_tokens.clear()
    assert loop(mixed, "dual")["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert visual_tokens == [2, 1]


def test_the_head_runs_only_where_needed_and_encoders_once_per_picture(make_loop, batch: PairBatch):
    """No logits of a whole row over the whole vocabulary; frozen encoders store no activations. A frame whose
    pixels are all zero is a frame."""
    loop = make_loop()
    small = batch.frames[1].pixel_values.clone()
    large = batch.frames[1].g_pixel_values.clone()
    small[0] = 0
    large[0] = 0
    batch = with_frame(batch, 2, pixel_values=small, g_pixel_values=large)
    model = loop.model
    heads: list[tuple[int, ...]] = []
    encoded: list[tuple[int, bool]] = []
    encoders = (model.vision_model, model.grounding_encoder.sam2_model.image_encoder)
    model.language_model.lm_head.register_forward_hook(lambda _, inputs, out: heads.append(inputs[0].shape))
    for encoder in encoders:
        encoder.register_forward_hook(
            lambda _, inputs, kwargs, out: encoded.append(
                (len([*inputs, *kwargs.values()][0]), torch.is_grad_enabled())
            ),
            with_kwargs=True,
        )
    loop(batch, "dual")
    # The teacher, a row each time; pass A, at most 5 words and their ends; pass B, the answers.
    assert all(len(shape) == 2 and shape[1] == 128 for shape in heads)
    assert max(shape[0] for shape in heads) < 2 * 60 < 2 * 256
    assert encoded == [(2, False)] * 3  # both frames through the tower, frame 2 through SAM 2's


def test_the_dual_loop_with_an_end_of_several_tokens(make_loop, batch: PairBatch):
    """Sa2VA's 4B has phi3_chat's template, and no token for its end."""
    loop = make_loop()
    loop.model.prompts = Prompts(byte_tokenizer(), "phi3_chat", loop.model.embedding.num_embeddings)
    result = loop(batch, "dual")
    assert result["loss"].isfinite() and result["at_limit"] == 1
