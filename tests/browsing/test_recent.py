"""Values kept in memory: the most recent ones, within a size, each made once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from browsing.recent import Recent


def test_the_values_used_last_are_kept_within_the_size():
    made = []
    kept: Recent[str] = Recent(10)

    def get(key: str, size: int) -> str:
        return kept.get(key, lambda: made.append(key) or key * 2, lambda value: size)

    assert [get("a", 4), get("b", 4), get("a", 4)] == ["aa", "bb", "aa"] and made == ["a", "b"]
    get("c", 4)  # in place of b, which was used longer ago than a
    get("a", 4)
    assert made == ["a", "b", "c"] and kept.size == 8
    get("b", 4)
    get("large", 11)
    get("large", 11)
    assert made == ["a", "b", "c", "b", "large"] and kept.size == 11  # alone, until the next
    get("a", 4)
    assert made == ["a", "b", "c", "b", "large", "a"] and kept.size == 4


def test_threads_that_ask_at_once_wait_for_one_that_makes_it_and_errors_are_not_kept():
    made = []
    kept: Recent[int] = Recent(10)
    begin = threading.Barrier(8)

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        if len(made) == 1:
            raise ValueError
        return 7

    def ask(_: int) -> int | None:
        begin.wait()
        try:
            return kept.get("key", make, lambda value: 1)
        except ValueError:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(ask, range(8))]
    assert sorted(found, key=str) == [7] * 7 + [None] and len(made) <= 3
    with pytest.raises(ValueError):
        kept.get("other", lambda: int("x"), lambda value: 1)
