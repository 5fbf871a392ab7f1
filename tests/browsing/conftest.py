"""Sets to look through: pairs of photographs with a table, and samples of all kinds without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from browsing.app import make_app
from browsing.collection import Collection
from browsing.marks import Marks
from shards.table import write_table
from tests.shards.conftest import mixed_root, mixed_set  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def sets(small_set: Path, mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with the sets `sav`, which has a table, and `mixed`, which has none. Not to be changed."""
    folder = tmp_path_factory.mktemp("browsed")
    shutil.copytree(small_set, folder / "sav")
    shutil.copytree(mixed_set, folder / "mixed")
    write_table(folder / "sav")
    for name in ("objects.parquet", "pictures.parquet", "tables.json"):
        (folder / "mixed" / name).unlink(missing_ok=True)
    return folder


@pytest.fixture
def client(sets: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A client of the page that shows both sets."""
    collection = Collection.open([sets])
    marks = {name: Marks(tmp_path / f"{name}.marks.jsonl") for name in collection.sets}
    with TestClient(make_app(collection, marks), base_url="http://127.0.0.1:8860") as found:
        yield found
