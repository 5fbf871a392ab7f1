"""Operations of the model, compared with counts by hand and by PyTorch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conversations import conversation_batch
from trainer.data.batch import PairBatch
from trainer.measure.rates import Spent
from trainer.model.counting import Counts, counting
from trainer.model.flops import Costs, costs_of, peak_named
from trainer.model.grounding import MEAN, STD

KINDS = ("vision_model", "sam_image_encoder", "mlp1", "language_model", "attention", "lm_head", "sam_mask_decoder")


@pytest.mark.parametrize("objective", ["dual", "converse"])
def test_flops_of_a_step_equal_pytorchs_count(make_loop, config, batch: PairBatch, objective: str):
    """Forward and backward, teacher and frozen parts included.

    What the two count apart is small: padding, the MLP behind [SEG], the Gumbel step's product with the token table.
    """
    config.max_caption_tokens = 3
    loop = make_loop(config)
    loop.costs = costs_of(loop.model)
    asked = batch if objective == "dual" else conversation_batch(batch, loop.model.prompts, (0,))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = loop(asked, objective)
        result["loss"].backward()
    assert result["flops"].item() == pytest.approx(counter.get_total_flops(), rel=0.03)
    if objective == "converse":
        assert result["tokens"] == len(asked.rows[0].ids) and result["padding"] == 0
        return
    rows = [loop.model.prompts.describe("a", [int(region.sum())]) for region in batch.frames[0].prompt_masks]
    assert result["tokens"] > sum(len(row.ids) for row in rows)


def test_counting_leaves_nothing_behind(make_loop, config):
    """It runs the model with tensors that have no values; what the model computes afterwards has them."""
    model = make_loop(config).model
    costs_of(model)
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    found = model.grounding_encoder.normalise(pictures)
    assert type(found) is torch.Tensor
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(found.double(), (pictures.double() / 255 - mean) / std, atol=1e-6)


def test_frozen_layers_count_forward_only_and_adapters_halve_the_backward_of_weights(make_loop, config):
    costs = costs_of(make_loop(config).model)
    assert costs.backward["vision_model"] == costs.backward["sam_image_encoder"] == 0
    assert costs.backward["attention"] == 2 * costs.forward["attention"] == 2 * 4 * 4 * 32 * 2
    linear = 2 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256)  # of two layers
    lora = 2 * 4 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))
    assert costs.forward["language_model"] == 2 * (linear + lora)
    assert (
        costs.backward["language_model"] == 2 * (linear + lora) + 2 * lora
    )  # of frozen weights no gradient of their own
    config.trainable = ["sam_mask_decoder"]
    assert costs_of(make_loop(config).model).backward["language_model"] == 0  # nothing below the decoder trains


def test_recomputed_layers_do_not_count_twice(make_loop, config, batch: PairBatch):
    """Compiled layers: see tests/trainer/model/test_compiled.py."""
    results = []
    for checkpointing in (False, True):
        loop = make_loop(config)
        loop.costs = Costs(dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 2.0))
        if checkpointing:
            loop.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        result = loop(batch, "reverse")
        result["loss"].backward()
        results.append([result[name].item() for name in ("tokens", "padding", "flops")])
    assert results[0] == results[1]


def test_hooks_are_removed_after_an_error_too(make_loop, batch: PairBatch):
    model = make_loop().model
    with pytest.raises(KeyError), counting(model) as counts:
        model.encode_image(batch.frames[0].pixel_values)
        raise KeyError
    assert counts.amounts == {("vision_model", False): 2}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_padding_does_not_count_and_a_cache_counts_in_attention():
    counts = Counts()
    counts.add_tokens(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]), new=4)
    with torch.no_grad():
        counts.add_tokens(torch.tensor([[0, 1, 1, 1]]), new=1)  # one more token, which attends to three
    assert counts.amounts[("language_model", True)] == 4 == counts.tokens
    assert counts.amounts[("attention", True)] == 3 * 3 + 1
    assert counts.amounts[("language_model", False)] == 1 and counts.amounts[("attention", False)] == 3
    assert counts.padding == 4


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Something Else", None),
    ],
)
def test_peak_rates_are_looked_up_by_the_whole_device_name(name: str, bf16: float | None):
    assert peak_named(name, "bf16") == bf16
    assert bf16 is None or peak_named(name, "no") < bf16


def test_rates_are_those_of_all_processes():
    each = {
        "tokens": [100.0, 300.0],
        "padding": [0.0, 100.0],
        "flops": [2e12, 4e12],
        "waited": [0.5, 0.0],
        "memory": [1e9, 2e9],
        "captions": [0.4, 0.0],
    }
    rates = Spent.of(2.0, 8, each).rates(peak=3e12)
    assert rates == {
        "seconds": 2.0,
        "samples_per_second": 4.0,
        "tokens_per_second": 200.0,
        "padding": 0.2,
        "data_wait": 0.125,
        "data_wait_max": 0.25,
        "memory_bytes": 2e9,
        "captions": 0.1,
        "mfu": pytest.approx(6e12 / 2 / (2 * 3e12)),
    }
    each["captions"] = [0.0, 0.0]  # an objective without a teacher
    assert {"mfu", "captions"}.isdisjoint(Spent.of(2.0, 8, each).rates(peak=None))
