"""Helpers of the tests of models."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import pytest
import sam2.build_sam


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Compose SAM 2's configuration once per kind: this takes longer than building a tiny model from it."""
    original = sam2.build_sam.compose

    @cache
    def compose(name: str, overrides: tuple[str, ...]) -> object:
        return original(config_name=name, overrides=[*overrides])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sam2.build_sam, "compose", lambda config_name, overrides: deepcopy(compose(config_name, tuple(overrides)))
        )
        yield
