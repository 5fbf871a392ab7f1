"""The demo's model tells the names of its objects apart."""

import torch

from tests.demo.conftest import NAMES


def test_a_name_is_one_token_alone_and_in_a_question(model):
    prompts = model.prompts
    for name in NAMES:
        (token,) = prompts.encode(name)
        assert prompts.segment("any", name).ids == prompts.segment("any", [token]).ids


def test_the_name_changes_the_prompt_token_more_than_the_picture(model):
    """Two noise images stand for pictures. The embeddings of all names are linearly independent."""
    prompts = model.prompts
    rows = prompts.padded([prompts.segment("any", name) for name in NAMES], model.device)
    visual_tokens = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    tokens = []
    with torch.no_grad():
        for image in (0, 1):
            embeddings = model.embed_rows(rows, visual_tokens, torch.full((len(NAMES),), image))
            states = model.run_language_model(embeddings, rows.attention, rows.positions)
            tokens.append(model.text_hidden_fcs(states.flatten(0, 1)[rows.segs]))
    by_phrase = tokens[0].std(0).mean()
    by_picture = (tokens[0] - tokens[1]).abs().mean()
    assert by_phrase > 2 and by_phrase > 2 * by_picture
    spread = torch.linalg.svdvals(tokens[0] - tokens[0].mean(0))
    assert spread[-2] > 0.5 * spread[0]
