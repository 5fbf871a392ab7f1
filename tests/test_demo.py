"""The demo's data and model are what the demo says of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import shards
from demo import draw_overview, make_folder
from demo.make_model import make
from demo.make_sav import SCENES, SIZE, crop, draw, photograph, shown
from pipeline.request import make_request
from pipeline.run import run
from trainer.model.sa2va import Sa2VA
from trainer.released.folder import load_model, save_model

NAMES = [thing for things in SCENES.values() for thing in things]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Sa2VA:
    """As a training finds it: written, and read again."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    save_model(make(NAMES), folder)
    return load_model(folder).model


def test_a_name_is_one_token_alone_and_in_a_question(model):
    prompts = model.prompts
    for name in NAMES:
        (token,) = prompts.encode(name)
        assert prompts.segment("any", name).ids == prompts.segment("any", [token]).ids


def test_what_is_asked_for_reaches_the_prompt_token(model):
    """More than the picture does, in each of two noises seen as pictures; and every name differs from all others."""
    prompts = model.prompts
    rows = prompts.pack([prompts.segment("any", name) for name in NAMES], model.device)
    visual_tokens = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    tokens = []
    with torch.no_grad():
        for image in (0, 1):
            embeddings = model.embed_rows(rows, visual_tokens, torch.full((len(NAMES),), image))
            states = model.run_language_model(embeddings, rows.attention, rows.positions)
            tokens.append(model.text_hidden_fcs(states[rows.ids == prompts.seg]))
    by_phrase, by_picture = tokens[0].std(0).mean(), (tokens[0] - tokens[1]).abs().mean()
    assert by_phrase > 2 and by_phrase > 2 * by_picture
    spread = torch.linalg.svdvals(tokens[0] - tokens[0].mean(0))
    assert spread[-2] > 0.5 * spread[0]


def test_named_objects_lie_where_the_photograph_has_them(tmp_path):
    every = [(name, shapes) for name, things in SCENES.items() for shapes in things.values()]
    make_folder.write(tmp_path, len(every), seed=5)
    rng = np.random.default_rng(5)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for line, (name, shapes) in zip(lines, every, strict=True):
        box = crop(photograph(name), shapes, 0.5, rng)
        assert Image.open(tmp_path / line["image"]).size == (SIZE, SIZE)
        wanted = [thing for thing, outlines in SCENES[name].items() if shown(photograph(name), outlines, box) >= 0.5]
        assert [one["texts"] for one in line["objects"]] == [[thing] for thing in wanted]
        for one in line["objects"]:
            met = Image.new("L", (SIZE, SIZE))
            for polygon in one["mask"]:
                ImageDraw.Draw(met).polygon(polygon, fill=255)
            truth = np.asarray(draw(SCENES[name][one["id"]], box, (SIZE, SIZE))) > 0
            both, either = truth & (np.asarray(met) > 0), truth | (np.asarray(met) > 0)
            assert both.sum() > 0.97 * either.sum()


def test_the_overview_shows_frame_mask_cells_and_prediction(model, tmp_path):
    make_folder.write(tmp_path / "folder", 1, seed=5)
    request = make_request("folder", tmp_path / "folder", shard_bytes=10**8)
    run(request, tmp_path / "set", 1)
    save_model(model, tmp_path / "model")
    sheet, iou = draw_overview.draw(tmp_path / "set", tmp_path / "model", 0)
    assert sheet.size == (4 * 256 + 3 * 8, 256 + 22) and 0 <= iou <= 1
    frame, mask, cells, _ = (np.asarray(sheet)[22:, 264 * i : 264 * i + 256].astype(int) for i in range(4))
    sample = shards.open_set(tmp_path / "set")[0]
    truth = sample["masks"][0][2::4, 2::4]
    changed = np.abs(mask - frame).sum(-1) > 0
    assert (changed == truth).mean() > 0.98  # all but some pixels at the outline
    assert (np.abs(cells - frame).sum(-1) > 0)[8::16, 8::16].sum() >= 0.9 * sample["prompt_masks"][0].sum()
