"""Generation: cache, padding and the end token do not change the tokens."""

from __future__ import annotations

import pytest
import torch

from trainer.model.architecture import PRESETS, Architecture
from trainer.model.captioner import Caption, Captioner, captions_of, choose
from trainer.model.generation import Answers
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA, preset_prompts
from trainer.model.tokenizer import byte_tokenizer


@pytest.fixture
def question(model: Sa2VA):
    """Two regions of unequal size, in a picture each."""
    torch.manual_seed(0)
    regions = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 2:12, 2:12] = regions[1, 0, 5, 5] = True
    visual_tokens = torch.randn(2, 256, model.mlp1[0].normalized_shape[0])
    rows = [model.prompts.describe("a", [100]), model.prompts.describe("b", [1])]
    return rows, visual_tokens, torch.tensor([0, 1]), regions


def by_hand(model: Sa2VA, visual_tokens: torch.Tensor, regions: torch.Tensor, i: int, steps: int) -> list[int]:
    """Greedy generation of one row alone, without cache or padding."""
    prompts = model.prompts
    tokens = []
    for _ in range(steps):
        rows = prompts.padded([prompts.describe("x", [int(regions[i].sum())], tokens)], model.device)
        states = model.run_language_model(
            model.embed_rows(rows, visual_tokens, torch.tensor([i]), regions[i : i + 1]), rows.attention, rows.positions
        )
        logits = model.language_model.lm_head(states[0, -1]).clone()
        allowed = prompts.ordinary.clone()
        allowed[prompts.end_ids[0]] = bool(tokens)
        logits[~allowed] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == prompts.end_ids[0]:
            break
    return tokens


def test_greedy_generation_equals_one_row_at_a_time_without_a_cache(model: Sa2VA, question):
    _, visual_tokens, _, regions = question
    captions = Captioner(model)(*question, 6).tokens()
    assert captions == [by_hand(model, visual_tokens, regions, i, 6) for i in range(2)]


def test_padding_is_no_part_of_a_sliding_window():
    """The layers see the last 160 tokens, which reach beyond a small region. Each of three regions of unequal size has
    the logits that it has alone, without a cache."""
    torch.manual_seed(0)
    tiny = PRESETS["tiny"]
    window = {"use_sliding_window": True, "sliding_window": 160, "max_window_layers": 0}
    config = {**tiny.config, "llm_config": {**tiny.config["llm_config"], **window}}
    model = Sa2VA(Architecture(config, tiny.sam), preset_prompts("tiny")).eval().requires_grad_(False)
    regions = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 2:12, 2:12] = regions[1, 0, 5, 5] = regions[2, 0, :3, 1] = True
    visual_tokens = torch.randn(1, 256, model.mlp1[0].normalized_shape[0])
    rows = [model.prompts.describe("x", [int(region.sum())]) for region in regions]
    logits: list[torch.Tensor] = []
    model.language_model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    Captioner(model)(rows, visual_tokens, torch.zeros(3, dtype=torch.int64), regions, 1)
    for i in range(3):
        by_hand(model, visual_tokens.expand(3, -1, -1), regions, i, 1)
    torch.testing.assert_close(logits[0], torch.stack(logits[1:]), atol=1e-4, rtol=1e-4)


def test_objects_of_a_picture_share_its_keys_and_values(model: Sa2VA, monkeypatch: pytest.MonkeyPatch):
    """The layers read a picture once, then the rest of all rows, then a token each of the rows that have not ended."""
    torch.manual_seed(1)
    prompts = model.prompts
    visual_tokens = torch.randn(2, 256, model.mlp1[0].normalized_shape[0])
    regions = torch.zeros(4, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 2:12, 2:12] = regions[1, 0, 5, 5] = regions[2, 0, :3, 1] = regions[3, 0, 9:, 9:] = True
    images = torch.tensor([1, 0, 1, 1])
    rows = [prompts.describe("x", [int(region.sum())]) for region in regions]
    captioner = Captioner(model)
    draws = torch.rand(4, 9)
    of_row = zip(rows, visual_tokens[images].split(1), regions.split(1), draws.split(1), strict=True)
    first = torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(prompts, "ended", lambda ids: torch.zeros(len(ids), dtype=torch.bool))
    written = [captioner([row], seen, first, region, 9, 1.0, draw).tokens()[0] for row, seen, region, draw in of_row]
    ends = {written[0][2], written[1][5], written[2][8]}
    monkeypatch.setattr(prompts, "ended", lambda ids: torch.isin(ids[:, -1], torch.tensor([*ends])))
    lengths = [next((n + 1 for n, token in enumerate(tokens) if token in ends), 9) for tokens in written]
    assert len({*lengths}) > 2
    read: list[tuple[int, ...]] = []
    layer = model.language_model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape[:2])))
    answers = captioner(rows, visual_tokens, images, regions, 9, 1.0, draws)
    hook.remove()
    assert answers.tokens() == [tokens[:length] for tokens, length in zip(written, lengths, strict=True)]
    whole = [len(row.ids) for row in rows]
    shared = read[0][1]
    assert read[0][0] == 2 and 256 < shared < min(whole) and read[1] == (4, max(whole) - shared)
    assert read[2:] == [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]


def test_a_process_whose_answers_have_ended_runs_the_layers_on(model: Sa2VA, question, monkeypatch: pytest.MonkeyPatch):
    """As often as the others do, as sharded layers need it, on one row."""
    expected = Captioner(model)(*question, 2).tokens()
    monkeypatch.setattr(model.prompts, "ended", lambda ids: torch.full((len(ids),), ids.shape[1] >= 2))
    asked: list[bool] = []

    def any_process(here: bool) -> bool:
        asked.append(here)
        return len(asked) < 5

    read: list[int] = []
    layer = model.language_model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    answers = Captioner(model)(*question, 6, any_process=any_process)
    hook.remove()
    assert answers.tokens() == expected and answers.ids.shape == (2, 5)
    assert asked == [True, False, False, False, False] and read == [2, 2, 2, 1, 1, 1]


@pytest.fixture
def ends_soon(model: Sa2VA):
    """The head's weights, for a test to favour the end token; restored afterwards."""
    weight = model.language_model.lm_head.weight
    before = weight.clone()
    yield weight
    with torch.no_grad():
        weight.copy_(before)


def test_generation_stops_at_the_end_token_but_writes_at_least_one_word(model: Sa2VA, question, ends_soon):
    captioner = Captioner(model)
    end = model.prompts.end_ids[0]
    with torch.no_grad():
        ends_soon[end] = 0
        ends_soon[model.prompts.ordinary] *= 1e-6  # all text is equally likely, the end is last among equals
        ends_soon[end] = model.run_language_model(*_states(model, question))[:, -1].sum(0) * 1e3
    captions = captioner(*question, 20)
    for tokens in captions.tokens():
        assert len(tokens) >= 2  # one word at least
        assert tokens.index(end) == len(tokens) - 1
    assert captions.ids.shape[1] < 20
    assert (captions.ids[~captions.valid] == model.prompts.pad).all()


def _states(model: Sa2VA, question):
    asked, visual_tokens, image_of_row, regions = question
    rows = model.prompts.padded(asked, model.device, left=True)
    return model.embed_rows(rows, visual_tokens, image_of_row, regions), rows.attention, rows.positions


def test_special_tokens_are_never_generated(model: Sa2VA, question, ends_soon):
    marks = (~model.prompts.ordinary).nonzero()[:, 0]
    with torch.no_grad():
        ends_soon[marks] *= 1e3
    for tokens in Captioner(model)(*question, 8).tokens():
        assert all(model.prompts.ordinary[t] or t == model.prompts.end_ids[0] for t in tokens)


def test_sampled_tokens_follow_the_softmax():
    torch.manual_seed(1)
    logits = torch.randn(12) * 2
    count = 100_000
    logits[[0, 5, 11]] = -torch.inf
    tokens = choose(logits.expand(count, -1), 0.8, torch.rand(count))
    shares = torch.softmax(logits / 0.8, 0)
    frequencies = torch.bincount(tokens, minlength=12) / count
    assert not frequencies[shares == 0].any()
    assert ((frequencies - shares).abs() < 4.5 * (shares * (1 - shares) / count).sqrt() + 1e-9).all()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24, 1.0])
def test_a_draw_at_the_edge_gives_an_allowed_token(draw: float):
    logits = torch.randn(50, 300)
    logits[:, :7] = logits[:, 290:] = -torch.inf
    tokens = choose(logits, 1.3, torch.full((50,), draw))
    assert (tokens >= 7).all() and (tokens < 290).all()


def test_sampling_is_part_of_generation(model: Sa2VA, question):
    captioner = Captioner(model)
    draws = torch.rand(2, 6)
    sampled = captioner(*question, 6, 2.0, draws).tokens()
    assert captioner(*question, 6, 2.0, draws).tokens() == sampled
    assert captioner(*question, 6, 2.0, torch.rand(2, 6)).tokens() != sampled


def test_tokens_after_the_end_are_dropped():
    ids = torch.tensor([[5, 9, 7, 7]])
    valid = torch.tensor([[True, True, False, False]])
    captions = Answers(ids, valid, torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    assert captions.tokens() == [[5, 9]]


def answers(rows: list[list[int]]) -> Answers:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Answers(ids, valid, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def test_captions_exclude_their_end_token():
    qwen = Prompts(byte_tokenizer(), "qwen_chat", vocabulary=272)
    cat = qwen.encode("cat")
    assert captions_of(answers([[*cat, *qwen.end_ids], cat]), qwen) == [Caption(cat, True), Caption(cat, False)]
    phi3 = Prompts(byte_tokenizer(), "phi3_chat", vocabulary=272)  # its end is five letters and more
    written = [phi3.encode("cat<|end|>"), phi3.encode("cat<|en"), phi3.encode("<|end|>")]
    first, second, third = captions_of(answers(written), phi3)
    assert first == Caption(cat, True) and first.end(phi3) == phi3.encode("<|end|>")
    assert second == Caption(written[1], False) and second.end(phi3) == []
    assert third.words and not third.ended  # a caption has words
    (spelled,) = captions_of(answers([[*phi3.letters("a [SEG]"), *phi3.end_ids]]), phi3)
    assert spelled.words == phi3.letters("a [SEG]") and phi3.seg not in spelled.words
