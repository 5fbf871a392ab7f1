"""A recipe: every choice that changes a stored value. It is written into every shard set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from shards.errors import UserError

PromptPooling = Literal["center", "corner", "area"]


@dataclass(frozen=True)
class Recipe:
    """How the four formats are made from an original picture and its masks.

    `name` is what the user asked for and no more than a label: `--recipe default --prompt-pooling corner` is called
    "default" too. Two recipes are the same if all their values are (see `digest`).
    """

    name: str = "default"
    vision_size: int = 448
    """`pixel_values` is (3, vision_size, vision_size)."""
    sam_size: int = 1024
    """`g_pixel_values` is (3, sam_size, sam_size), `masks` is (N, sam_size, sam_size)."""
    grid: int = 16
    """`prompt_masks` is (N, grid, grid): the ViT's tokens a side, 448 / 14 * 0.5."""
    image_filter: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's filter, antialiased, for both picture sizes."""
    prompt_pooling: PromptPooling = "center"
    """The value of a prompt cell. center: the original mask at the cell's centre (Pillow NEAREST); corner: at its first
    corner (torch `interpolate(mode="nearest")`); area: nearest to vision_size, then the cell's mean > 0.5."""
    min_prompt_cells: int = 4
    small_regions: Literal["fill", "drop"] = "fill"
    """What becomes of a region with fewer than `min_prompt_cells` cells: cells are switched on in order of the object's
    coverage, or the object is dropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: str) -> Recipe:
        """Raise `UserError` unless `values` has exactly this recipe's fields, each with a value that it can take."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            met = ", ".join(sorted(map(str, values))) if isinstance(values, dict) else type(values).__name__
            raise UserError("not a recipe of this version", where=where, met=met, wanted=", ".join(sorted(names)))
        if not isinstance(values["name"], str):
            raise UserError("recipe.name", where=where, met=repr(values["name"])[:60], wanted="a text")
        for name, allowed in _ALLOWED.items():
            if values[name] not in allowed or type(values[name]) is not type(allowed[0]):
                wanted = repr(allowed)[:60]
                raise UserError(f"recipe.{name}", where=where, met=repr(values[name]), wanted=wanted)
        if not isinstance(values["name"], str):
            raise UserError("recipe.name", where=where, met=repr(values["name"])[:60], wanted="a text")
        checked: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**checked)

    @property
    def digest(self) -> str:
        """Hexadecimal hash of all values but the name."""
        values = {k: v for k, v in self.to_json().items() if k != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """The label, the digest, and every value in which recipes that this release reads can differ."""
        values = ", ".join(f"{name} {getattr(self, name)}" for name, allowed in _ALLOWED.items() if len(allowed) > 1)
        return f"{self.name} ({self.digest}: {values})"

    def differences(self, other: Recipe) -> str:
        """The values of this recipe that `other` has otherwise, as text; empty where the two are the same."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "name")
        return ", ".join(f"{name} {own}, not {theirs}" for name, own, theirs in pairs if own != theirs)


# The sizes and constants belong to the model: a shard with others is not one that this release reads.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "vision_size": (448,),
    "sam_size": (1024,),
    "grid": (16,),
    "image_filter": ("bilinear", "bicubic"),
    "prompt_pooling": get_args(PromptPooling),
    "min_prompt_cells": tuple(range(257)),
    "small_regions": ("fill", "drop"),
    "mean": ([0.485, 0.456, 0.406],),
    "std": ([0.229, 0.224, 0.225],),
}

RECIPES = {
    "default": Recipe(),
    # Bit-equal to what Sa2VA's own datasets compute.
    "sa2va": Recipe(name="sa2va", image_filter="bicubic", prompt_pooling="corner", small_regions="drop"),
}


def named_recipe(name: str, prompt_pooling: str | None = None) -> Recipe:
    """The recipe `name`, with another pooling of the prompt cells where one is asked for."""
    if name not in RECIPES:
        raise UserError("unknown recipe", met=name, wanted=" or ".join(RECIPES), do="see docs/FORMAT.md")
    if prompt_pooling is None:
        return RECIPES[name]
    for pooling in get_args(PromptPooling):
        if pooling == prompt_pooling:
            return replace(RECIPES[name], prompt_pooling=pooling)
    wanted = " or ".join(get_args(PromptPooling))
    raise UserError("unknown pooling of prompt cells", met=prompt_pooling, wanted=wanted, do="see docs/FORMAT.md")
