"""`training.json` in a model's folder: the samples of its training, and the recipe of their tensors.

Prediction then makes tensors by the same recipe. The folders of the released models have no such file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.recipe import RECIPES, Recipe
from trainer.released.files import read_json
from trainer.released.loaded import ModelInfo
from trainer.trained_on import FILE, KEY, TrainedOn, ids_to_bytes, read_trained_on

TRAINING = "training.json"
VIDEO_FRAMES_KEY = "video_frames"
"""Key of a model's `config.json`: which frames of a video its language model sees, "first" or "uniform"."""
VIDEO_FRAMES_NUMBER_KEY = "video_frames_number"
"""Key of a model's `config.json`: how many of them."""
_VERSION = 1


def write_training(folder: Path, info: ModelInfo) -> None:
    """Write `training.json` and `trained_on.bin` into `folder`; no file where recipe and samples are unknown."""
    body: dict[str, Any] = {} if info.recipe is None else recipe_to_json(info.recipe)
    if info.trained_on is not None:
        body[KEY] = info.trained_on.to_json()
        (folder / FILE).write_bytes(ids_to_bytes(info.trained_on))
    if body:
        body = {"version": _VERSION, **body}
        (folder / TRAINING).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def read_training(folder: Path) -> tuple[Recipe | None, TrainedOn | None]:
    """Return the recipe and the samples that `training.json` in `folder` names; None each where it does not.

    Raises:
        UserError: the file is broken, of another version, or its recipe and its hash differ.
    """
    path = folder / TRAINING
    if not path.exists():
        return None, None
    body = read_json(path)
    if body.get("version") != _VERSION:
        raise UserError("another version", where=str(path), met=repr(body.get("version")), wanted=str(_VERSION))
    return recipe_from_json(body, str(path)), read_trained_on(folder, body, str(path))


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the whole definition with its digest, under the keys of a shard set's manifest."""
    return {"recipe": recipe.to_json(), "recipe_hash": recipe.digest}


def recipe_from_json(body: dict[str, Any], where: str) -> Recipe | None:
    """Return the recipe in `body`, read from the file `where`; None where there is none.

    Earlier releases wrote the name alone: then it is the recipe with this name, if there is one.

    Raises:
        UserError: values that a recipe cannot have, or another hash than theirs.
    """
    stored = body.get("recipe")
    if stored is None or isinstance(stored, str):
        return RECIPES.get(stored or "")
    recipe = Recipe.from_json(stored, where)
    if (stored_hash := body.get("recipe_hash")) != recipe.digest:
        raise UserError("recipe and its hash differ", where=where, met=str(stored_hash), wanted=recipe.digest)
    return recipe
