"""Regions of a picture as cells of the vision tower's 16 x 16 token grid."""

from __future__ import annotations

import numpy as np

from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards.errors import UserError
from shards.recipe import Recipe


def region_cells(picture: UInt8, regions: Bool, recipe: Recipe, name: str) -> Bool:
    """Pool regions (R, H, W) bool to cells (R, 16, 16) bool. Every region has at least one cell.

    Small regions are filled if the recipe fills them. A recipe that drops them leaves them as they are here, because
    the user asked about this region.

    Args:
        picture: (H, W, 3).
        regions: (R, H, W) bool.
        recipe: how regions become cells.
        name: the picture's name, for messages.

    Raises:
        UserError: regions of another size than `picture`, or one without a cell.
    """
    if regions.dtype != np.bool_ or regions.ndim != 3 or not len(regions) or regions.shape[1:] != picture.shape[:2]:
        raise UserError(
            "regions that do not fit the picture",
            where=name,
            met=f"{regions.dtype} {regions.shape}",
            wanted=f"bool (regions, {picture.shape[0]}, {picture.shape[1]})",
        )
    grids = []
    for n, region in enumerate(regions, 1):
        grid = resize.prompt_cells(region, recipe.prompt_pooling, recipe)
        if recipe.small_regions == "fill":
            grid = resize.fill_small(grid, region, recipe)
        if not grid.any():
            what = f"region{n} has no cell of the {recipe.grid} x {recipe.grid} grid"
            do = "the recipe default fills small regions" if region.any() else ""
            raise UserError(what, where=name, met=f"{int(region.sum())} pixels", do=do)
        grids.append(grid)
    return np.stack(grids)
