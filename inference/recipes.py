"""The recipe that a model predicts with: its own, unless another is asked for."""

from __future__ import annotations

from shards.recipe import RECIPES, Recipe
from trainer.released.loaded import LoadedModel


def recipe_of(loaded: LoadedModel) -> Recipe:
    """Return the recipe of the tensors that the model was trained on; `sa2va`, as released models, where unknown."""
    return loaded.info.recipe or RECIPES["sa2va"]


def explain(loaded: LoadedModel, asked: Recipe | None) -> str:
    """One line for the user: which recipe is used, why, and where it differs from the model's own."""
    own = recipe_of(loaded)
    whose = "the model's own" if loaded.info.recipe else "the model's folder names none, so that of the released models"
    if asked is None:
        return f"recipe {own}: {whose}"
    if differences := asked.differences(own):
        return f"recipe {asked}, as asked for; warning: it is not {own}, {whose}: {differences}"
    return f"recipe {asked}, as asked for: {whose}"


def explain_shards(loaded: LoadedModel, shards: Recipe) -> str:
    """One line for the user: whether shards hold the tensors that the model was trained on.

    The tensors of shards are fixed: a model of another recipe is measured on other tensors than those of its training.
    """
    own, differences = recipe_of(loaded), shards.differences(recipe_of(loaded))
    whose = "the model's own" if loaded.info.recipe else "that of the released models; the model's folder names none"
    if differences:
        return f"warning: the shards' recipe is {shards}, the model's is {own} ({whose}): {differences}"
    return f"recipe of the shards {shards}: {whose}"
