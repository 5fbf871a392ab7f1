"""The recipe of prediction: the model's own, unless the user asks for another."""

from __future__ import annotations

from shards.recipe import RECIPES, Recipe
from trainer.released.loaded import LoadedModel


def recipe_of(loaded: LoadedModel) -> Recipe:
    """Return the recipe of the tensors that the model was trained on; the released models' if unknown."""
    return loaded.info.recipe or RECIPES["sa2va"]


def explain(loaded: LoadedModel, requested: Recipe | None) -> str:
    """Return one line for the user: which recipe is used, why, and where it differs from the model's own."""
    model_recipe = recipe_of(loaded)
    whose = "the model's own" if loaded.info.recipe else "the model's folder names none, so that of the released models"
    if requested is None:
        return f"recipe {model_recipe}: {whose}"
    if differences := requested.differences(model_recipe):
        return f"recipe {requested}, as asked for; warning: it is not {model_recipe}, {whose}: {differences}"
    return f"recipe {requested}, as asked for: {whose}"


def explain_shards(loaded: LoadedModel, shards: Recipe) -> str:
    """Return one line for the user: whether shards have the recipe that the model was trained on.

    The tensors of shards are fixed: a model of another recipe is measured on tensors unlike those of its training.
    """
    model_recipe = recipe_of(loaded)
    differences = shards.differences(model_recipe)
    whose = "the model's own" if loaded.info.recipe else "that of the released models; the model's folder names none"
    if differences:
        return f"warning: the shards' recipe is {shards}, the model's is {model_recipe} ({whose}): {differences}"
    return f"recipe of the shards {shards}: {whose}"
