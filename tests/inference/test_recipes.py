"""Prediction uses the recipe of the model's training: from raw data to an answer, and in every kind of folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from inference.loading import load
from inference.onnx_export import export_onnx
from inference.predictor import Predictor
from inference.quantise import export_int8
from inference.recipes import explain_shards
from inference.run import predict
from pipeline.request import Request
from pipeline.run import run
from pipeline.sources import source_named
from shards.errors import UserError
from shards.reader import ShardSet
from shards.recipe import RECIPES, Recipe, named_recipe
from tests.trainer.runs import SMALL
from trainer.model.sa2va import Sa2VA
from trainer.released.folder import load_model, save_model
from trainer.released.loaded import LoadedModel, ModelInfo
from trainer.released.training import TRAINING, recipe_from_json, recipe_to_json
from trainer.train import main

CORNER = named_recipe("default", "corner")
"""Another recipe that is called "default" too."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, each with a large region and one of 6 x 6 pixels around a corner of four cells."""
    root = tmp_path_factory.mktemp("raw")
    lines = []
    for n, photo in enumerate((photographs.chelsea(), photographs.coffee())):
        Image.fromarray(photo).save(root / f"{n}.png", compress_level=1)
        row, column = (side // 8 for side in photo.shape[:2])
        small = slice(row - 3, row + 3), slice(column - 3, column + 3)
        for name, (rows, columns) in {"small": small, "large": (slice(60, 200), slice(90, 300))}.items():
            mask = np.zeros(photo.shape[:2], np.uint8)
            mask[rows, columns] = 255
            Image.fromarray(mask).save(root / f"{n}{name}.png")
        objects = [{"mask": f"{n}{name}.png", "texts": ["it"]} for name in ("small", "large")]
        lines.append(json.dumps({"image": f"{n}.png", "objects": objects}))
    (root / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return root


def sharded(raw: Path, out: Path, recipe: Recipe) -> ShardSet:
    run(Request(source_named("folder"), raw, recipe, shard_bytes=10**7), out, 1, 0.0)
    return ShardSet(out)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPES["default"], named_recipe("sa2va", "area")], ids=["default", "sa2va-area"])
def test_prediction_meets_the_tensors_of_training_bit_for_bit(
    raw: Path, tmp_path: Path, here: Callable, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
):
    """Shard, train, export and predict."""
    shards = sharded(raw, tmp_path / "shards", recipe)
    options = [
        f"data.shards=[{shards.folder}]",
        f"output_dir={tmp_path / 'run'}",
        "objective=describe",
        "data.holdout=0",
    ]
    main([*SMALL, *options, "steps=1", "accumulation=1", "batch_size=2"])
    done = here("export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "model")
    assert not done.returncode, done.stderr
    for folder in (tmp_path / "run", tmp_path / "model"):
        loaded = load(folder, "cpu")
        model = loaded.model
        assert loaded.info.recipe == recipe
        actual = {name: spied(monkeypatch, model, name) for name in ("encode_image", "embed_rows")}
        actual["encode"] = spied(monkeypatch, model.grounding_encoder, "encode")
        predictor = Predictor(loaded, max_new_tokens=1)
        for sample in (shards[0], shards[1]):
            photo = raw / sample["meta"]["path"].removesuffix("#0")
            described = [raw / f"{photo.stem}{name}.png" for name in ("small", "large")][-len(sample["masks"]) :]
            [*predict(lambda loaded=predictor: loaded, tmp_path / "out", image=photo, regions=described)]
            predictor._encode_sam(np.asarray(Image.open(photo)))
            assert np.array_equal(actual["encode_image"].pop()[0][0].numpy(), sample["pixel_values"])
            assert np.array_equal(actual["embed_rows"].pop()[3][0].numpy(), sample["prompt_masks"])
            assert np.array_equal(actual["encode"].pop()[0][0].numpy(), sample["g_pixel_values"])
            if recipe == RECIPES["default"]:  # another recipe is another picture, and has fewer cells
                assert sample["prompt_masks"][0].sum() == 4


def spied(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple]:
    """Record the arguments of each call of a method, which still runs."""
    calls: list[tuple] = []
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: (calls.append(given), original(*given))[1])
    return calls


@pytest.mark.slow
def test_every_kind_of_folder_keeps_the_whole_definition(talker: Sa2VA, photos: list, tmp_path: Path):
    save_model(talker, tmp_path / "released")
    assert not (tmp_path / "released" / TRAINING).exists() and load_model(tmp_path / "released").info.recipe is None
    released = load_model(tmp_path / "released")
    save_model(released.model, tmp_path / "own", info=replace(released.info, recipe=CORNER))
    again = load_model(tmp_path / "own")
    save_model(again.model, tmp_path / "twice", info=again.info)
    export_onnx(again, tmp_path / "onnx", photos[:1])
    export_int8(again, tmp_path / "int8")
    for name in ("own", "twice", "onnx", "int8"):
        body = json.loads((tmp_path / name / TRAINING).read_text())
        assert body["recipe_hash"] == CORNER.digest != RECIPES["default"].digest
        assert recipe_from_json(body, "") == CORNER
    assert load(tmp_path / "int8", "cpu").info.recipe == CORNER


def test_the_recipe_is_printed_and_may_be_replaced(talker: Sa2VA, tmp_path: Path, here: Callable, photos: list):
    """The command prints the definition: by name alone, two recipes called "default" would be the same."""
    Image.fromarray(photos[0]).save(tmp_path / "a.png", compress_level=1)
    save_model(talker, tmp_path / "released")
    shutil.copytree(tmp_path / "released", tmp_path / "own")
    (tmp_path / "own" / TRAINING).write_text(json.dumps({"version": 1, **recipe_to_json(CORNER)}))
    options = ["--image", tmp_path / "a.png", "--text", "What?", "--max-new-tokens", 1, "--out", tmp_path / "out"]
    for name, more, expected in (
        ("released", [], r"recipe sa2va \(7dd15dd9f773cf37: .*\): the model's folder names none"),
        ("own", [], r"recipe default \(ae122d3c0a0235e3: .*prompt_pooling corner.*\): the model's own"),
        ("own", ["--recipe", "default"], r"as asked for; warning: .*: prompt_pooling center, not corner$"),
        ("released", ["--recipe", "sa2va"], r"as asked for: the model's folder names none"),
    ):
        done = here("predict", "--model", tmp_path / name, "--device", "cpu", *options, *more)
        assert not done.returncode, done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("recipe"))
        assert re.search(expected, line), line


def test_shards_of_another_recipe_than_the_model_s_are_a_warning_with_both_definitions(talker: Sa2VA):
    assert explain_shards(LoadedModel(talker), RECIPES["sa2va"]).startswith(
        "recipe of the shards sa2va (7dd15dd9f773cf37: "
    )
    loaded = LoadedModel(talker, ModelInfo(recipe=RECIPES["default"]))
    assert explain_shards(loaded, RECIPES["default"]).endswith("the model's own")
    warning = explain_shards(loaded, CORNER)
    assert warning.startswith("warning: ") and warning.endswith(": prompt_pooling corner, not center")
    for recipe in (CORNER, RECIPES["default"]):
        assert recipe.digest in warning and f"prompt_pooling {recipe.prompt_pooling}, min_prompt_cells 4" in warning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe_hash": "0" * 16}, "recipe and its hash differ; met 0000000000000000; wanted ae122d3c0a0235e3"),
        ({"recipe": [1]}, "not a recipe of this version; met list"),
        ({"recipe": {**CORNER.to_json(), "grid": 32}}, "recipe.grid; met 32"),
        ({"recipe": {**CORNER.to_json(), "name": 7}}, "recipe.name; met 7; wanted a text"),
        ({"version": 9}, "another version; met 9; wanted 1"),
    ],
)
def test_a_damaged_training_json_is_one_line(talker: Sa2VA, tmp_path: Path, change: dict, message: str):
    save_model(talker, tmp_path / "own")
    body = json.loads(json.dumps({"version": 1, **recipe_to_json(CORNER), **change}))
    (tmp_path / "own" / TRAINING).write_text(json.dumps(body))
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "own")
    assert f"{TRAINING}: {message}" in str(error.value)


def test_a_name_alone_in_an_earlier_checkpoint():
    assert recipe_from_json({"recipe": "default"}, "") == RECIPES["default"]
    assert recipe_from_json({"recipe": "mine"}, "") is None and recipe_from_json({}, "") is None
