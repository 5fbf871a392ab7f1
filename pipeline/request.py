"""The request of a sharding command: all that decides the bytes of a shard set, beside the raw data itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.sources import Source, choices_of, chosen_source
from shards.format import Codec
from shards.recipe import RECIPES, Recipe, named_recipe


@dataclass(frozen=True)
class Request:
    """A raw dataset and the shard set to make of it."""

    source: Source
    root: Path
    """Folder of the raw data."""
    recipe: Recipe = RECIPES["default"]
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Value of each of the source's choices (`--split`, `--frames`, ...); those left out have their defaults."""
    codec: Codec | None = None
    """Codec of the pictures; None: that of the set that stands in the same place, else `DEFAULT_CODEC`."""
    limit: int | None = None
    """Number of inputs to take, the first ones; None for all."""
    shard_bytes: int = 10**9
    """Size in bytes that a tar should not exceed."""
    without: tuple[str, ...] = ()
    """Folders and URLs of finished sets; the inputs that they hold are left out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", choices_of(self.source, self.choices))


def make_request(
    source: str,
    root: Path | None = None,
    *,
    recipe: str = "default",
    prompt_pooling: str | None = None,
    codec: Codec | None = None,
    limit: int | None = None,
    shard_bytes: int = 10**9,
    **choices: Any,
) -> Request:
    """Return the request for a source and a recipe as a user names them.

    Args:
        source: a registered name, or `MODULE:CLASS`, which is imported.
        root: None for `data/SOURCE`.
        prompt_pooling: None for the recipe's own.
        choices: of the source; None where one was not given.

    Raises:
        UserError: no such source, recipe or pooling, or a choice that the source does not have.
    """
    chosen = chosen_source(source)
    return Request(
        source=chosen,
        root=root or Path("data", chosen.name),
        recipe=named_recipe(recipe, prompt_pooling),
        choices=choices,
        codec=codec,
        limit=limit,
        shard_bytes=shard_bytes,
    )
