"""Rows laid end to end: each is computed as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from trainer.model import attention
from trainer.model.architecture import PRESETS, Architecture, tiny_sam
from trainer.model.attention import IMPLEMENTATION, LENGTHS, agrees
from trainer.model.rows import RowLengths

CPU = torch.device("cpu")
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen2 with a window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "Llama": {"architectures": ["LlamaForCausalLM"]},
    "InternLM2": {  # beyond 8 tokens its angles depend on the longest row
        "architectures": ["InternLM2ForCausalLM"],
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 8,
    },
}


def language_model(values: dict[str, Any]) -> PreTrainedModel:
    tiny = PRESETS["tiny"].config
    architecture = Architecture({**tiny, "llm_config": {**tiny["llm_config"], **values}}, tiny_sam(32))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture.language)
    assert model.config._attn_implementation == IMPLEMENTATION
    return model.train()


def lengths_of(*lengths: int) -> RowLengths:
    return RowLengths(lengths, torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32))


def states_of(model: PreTrainedModel, embeddings: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """States (1, N, D) of rows laid end to end."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    more = {LENGTHS: lengths_of(*lengths)}
    mask = torch.zeros(1, 1, 0, 0)
    return model.model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False, **more
    ).last_hidden_state


@pytest.mark.parametrize("lengths", [(5, 9, 1, 5), (7,)])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_states_and_gradients_are_those_of_padded_rows(name: str, lengths: tuple[int, ...]):
    """The expectation is transformers' own attention, written out in products and a softmax, with a mask."""
    model = language_model(LANGUAGE_MODELS[name])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    embeddings = torch.randn(1, sum(lengths), 128, requires_grad=True)
    packed = states_of(model, embeddings, lengths)[0]
    weights = torch.randn_like(packed)
    (packed * weights).sum().backward()
    weighed = [p for p in model.model.layers.parameters() if p.requires_grad]
    found = [each.grad.clone() for each in (embeddings, *weighed)]

    model.zero_grad()
    embeddings.grad = None
    model.set_attn_implementation("eager")
    longest = max(lengths)
    parts = embeddings[0].split(lengths)
    stacked = torch.stack([torch.cat([part, part.new_zeros(longest - len(part), 128)]) for part in parts])
    ones = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    positions = torch.arange(longest).expand(len(lengths), -1)
    states = model.model(
        inputs_embeds=stacked, attention_mask=ones, position_ids=positions, use_cache=False
    ).last_hidden_state
    padded = torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])
    (padded * weights).sum().backward()
    expected = [each.grad for each in (embeddings, *weighed)]
    assert torch.allclose(packed, padded, atol=2e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


def by_softmax(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, *longest: int, **how: Any):
    """What PyTorch's kernel for rows of several lengths computes, (N, heads, width); `starts` are bounds of rows."""
    assert how == {"scale": how["scale"], "window_size": (-1, 0)} and torch.equal(starts, ends)
    assert longest == (int(starts.diff().max()),) * 2
    row = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    order = torch.arange(len(query))
    seen = (row[:, None] == row) & (order[:, None] >= order)
    scale = query.shape[2] ** -0.5 if how["scale"] is None else how["scale"]
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", shares, value.float()).to(query.dtype)


def without_rows(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, *longest: int, **how: Any):
    whole = torch.tensor([0, len(query)])
    return by_softmax(query, key, value, whole, whole, len(query), len(query), **how)


def test_a_kernel_that_computes_something_else_is_not_taken(caplog: pytest.LogCaptureFixture):
    assert agrees(by_softmax, CPU, torch.bfloat16, 64) and not caplog.text
    assert not agrees(without_rows, CPU, torch.bfloat16, 64)
    assert "row by row: PyTorch's kernel for rows of several lengths is off by" in caplog.text


def test_the_kernel_of_a_gpu_gets_the_rows_and_gives_their_states(monkeypatch: pytest.MonkeyPatch):
    model = language_model({}).eval()
    lengths = (4, 1, 6)
    embeddings = torch.randn(1, sum(lengths), 128)
    expected = states_of(model, embeddings, lengths)
    calls = []

    def kernel(*inputs: Any, **how: Any) -> Tensor:
        calls.append(inputs[0].dtype)
        return by_softmax(*inputs, **how)

    monkeypatch.setattr(attention, "_varlen", lambda device, dtype, width: kernel)
    assert torch.allclose(states_of(model, embeddings, lengths), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (states_of(model, embeddings, lengths) - expected).norm() < 0.03 * expected.norm()
    assert calls == [torch.float32] * 2 + [torch.bfloat16] * 2
