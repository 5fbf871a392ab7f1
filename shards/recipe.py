"""Recipes: every choice that changes a stored value. Each shard set records its recipe."""

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

    `name` is a label: `--recipe default --prompt-pooling corner` is called "default", too. Two recipes are equal if all
    other values are (see `digest`).
    """

    name: str = "default"
    vision_size: int = 448
    """`pixel_values` is (3, vision_size, vision_size)."""
    sam_size: int = 1024
    """`g_pixel_values` is (3, sam_size, sam_size), `masks` is (N, sam_size, sam_size)."""
    grid: int = 16
    """`prompt_masks` is (N, grid, grid): tokens per side of the ViT, 448 / 14 * 0.5."""
    image_filter: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of Pillow, antialiased, for both picture sizes."""
    prompt_pooling: PromptPooling = "center"
    """The value of a prompt cell. center: the original mask at the cell's centre (Pillow NEAREST); corner: at its first
    corner (torch `interpolate(mode="nearest")`); area: nearest to vision_size, then the cell's mean > 0.5."""
    min_prompt_cells: int = 4
    small_regions: Literal["fill", "drop"] = "fill"
    """What happens to a region with fewer than `min_prompt_cells` cells: cells are added in the order of the object's
    coverage, or the object is dropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: str) -> Recipe:
        """Return the recipe; raises `UserError` unless `values` has exactly its fields, each with an allowed value."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            found = ", ".join(sorted(map(str, values))) if isinstance(values, dict) else type(values).__name__
            raise UserError("not a recipe of this version", where=where, met=found, wanted=", ".join(sorted(names)))
        if not isinstance(values["name"], str):
            raise UserError("recipe.name", where=where, met=repr(values["name"])[:60], wanted="a text")
        for name, allowed in _ALLOWED.items():
            if values[name] not in allowed or type(values[name]) is not type(allowed[0]):
                raise UserError(f"recipe.{name}", where=where, met=repr(values[name]), wanted=repr(allowed)[:60])
        checked: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**checked)

    @property
    def digest(self) -> str:
        """Hash of all values except the name, hexadecimal."""
        values = {k: v for k, v in self.to_json().items() if k != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """Return the label, the digest, and every value in which readable recipes can differ."""
        values = ", ".join(f"{name} {getattr(self, name)}" for name, allowed in _ALLOWED.items() if len(allowed) > 1)
        return f"{self.name} ({self.digest}: {values})"

    def differences(self, other: Recipe) -> str:
        """Return the values of this recipe that differ in `other`, as text; "" where the recipes are equal."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "name")
        return ", ".join(f"{name} {value}, not {expected}" for name, value, expected in pairs if value != expected)


# Sizes and constants are fixed by the model: sets with others are not readable.
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
    """Return the recipe `name`, with another pooling of the prompt cells if given; raises `UserError`."""
    if name not in RECIPES:
        raise UserError("unknown recipe", met=name, wanted=" or ".join(RECIPES), do="see docs/FORMAT.md")
    if prompt_pooling is None:
        return RECIPES[name]
    for pooling in get_args(PromptPooling):
        if pooling == prompt_pooling:
            return replace(RECIPES[name], prompt_pooling=pooling)
    raise UserError(
        "unknown pooling of prompt cells",
        met=prompt_pooling,
        wanted=" or ".join(get_args(PromptPooling)),
        do="see docs/FORMAT.md",
    )
