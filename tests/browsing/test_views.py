"""Orders over a table: every type of column, lists, nulls, samples without objects, chosen objects, joined columns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browsing.views import Views, columns_of, from_ranges, ranges
from shards.errors import UserError
from shards.join import join_file
from shards.reader import ShardSet
from shards.table import write_table
from tests.shards.conftest import mixed_root, mixed_set  # noqa: F401 (fixtures)


@pytest.fixture(scope="module")
def joined(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """8 samples with a joined column `late.score`, null for one, equal for two."""
    folder = Path(shutil.copytree(small_set, tmp_path_factory.mktemp("joined") / "sav"))
    write_table(folder)
    shards = ShardSet(folder)
    scores = {"key": [shards.key(n) for n in range(7)], "score": [0.5, 0.25, 0.75, 0.25, 1.0, -1.0, 0.0]}
    pq.write_table(pa.table(scores), folder.parent / "late.parquet")
    join_file(folder, folder.parent / "late.parquet")
    return shards


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", ["area", "areas", "key", "path", "texts", "words", "cells", "category", "more"])
def test_samples_are_sorted_by_their_least_or_greatest_value(joined, column, descending):
    values: dict[int, list] = {n: [] for n in range(8)}
    for row in pq.read_table(joined.folder / "objects.parquet").to_pylist():
        value = row[column]
        values[row["position"]] += [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    best = {n: (max if descending else min)(found) for n, found in values.items() if found}
    expected = sorted(best, key=lambda n: best[n], reverse=descending)
    if descending:  # equal ones stay in the set's order
        expected = sorted(sorted(best), key=lambda n: best[n], reverse=True)
    expected += [n for n in range(8) if n not in best]
    view = Views().view(joined, "", column, descending)
    assert view.part(0, 99) == expected and len(view) == 8


def test_joined_columns_are_listed_filtered_and_sorted(joined):
    assert columns_of(joined)["late.score"] == "double"
    views = Views()
    assert views.view(joined, "", "late.score", False).part(0, 9) == [5, 6, 1, 3, 0, 2, 4, 7]  # 7 has none
    chosen = views.view(joined, "late.score > 0.2", "late.score", True)
    assert chosen.part(0, 9) == [4, 2, 0, 1, 3] and chosen.place_of(1) == 3 and chosen.place_of(7) is None
    assert views.view(joined, "score > 0.2", "", False).part(1, 2) == [1, 2]
    with pytest.raises(UserError, match=r"no such column; met late.scores"):
        views.view(joined, "", "late.scores", False)


def test_samples_without_objects_come_last_and_chosen_objects_alone_count(mixed_set, tmp_path):  # noqa: F811
    folder = Path(shutil.copytree(mixed_set, tmp_path / "mixed"))
    write_table(folder)
    shards = ShardSet(folder)
    counts = np.array([len(shards.meta(n)["objects"]) for n in range(8)])
    having = np.flatnonzero(counts).tolist()
    rest = np.flatnonzero(counts == 0).tolist()
    order = Views().view(shards, "", "area", False).part(0, 99)
    assert sorted(order[: len(having)]) == having and order[len(having) :] == rest
    assert Views().view(shards, "object = 0", "", True).part(0, 99) == having[::-1]


def test_numbers_of_objects_as_text():
    numbers = [0, 1, 2, 4, 7, 8, 100]
    assert ranges(numbers) == "0-2,4,7-8,100" and from_ranges("0-2,4,7-8,100", 4096) == numbers
    assert from_ranges("5-999999999", 8) == [5, 6, 7] and from_ranges("", 8) == []
    for text in ("a", "1-", "-1", "1-2-3", "\u0661", "9" * 30):
        with pytest.raises(UserError, match="not numbers of objects"):
            from_ranges(text, 8)
