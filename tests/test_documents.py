"""Tests that the names in documents exist in the code."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_the_tests_that_hold_a_promise_exist():
    named = set(re.findall(r"`(test_\w+|tests/[\w/]+\.py)`", (REPOSITORY / "docs/RELIABILITY.md").read_text("utf-8")))
    files = {
        path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8")
        for path in (REPOSITORY / "tests").rglob("*.py")
    }
    defined = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.M)}
    assert len(named) > 30
    assert sorted(named - defined - files.keys()) == []
