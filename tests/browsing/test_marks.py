"""The file of marks: appended to, killed at any moment, written by several processes, of another kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from browsing.marks import Marks
from shards.errors import UserError

WRITER = """
import sys
from browsing.marks import Marks
marks = Marks(__import__("pathlib").Path(sys.argv[1]))
for n in range(100_000):
    marks.give("s", f"{sys.argv[2]}{n // 4000}", n % 4000, f"m{n}")
    print(n, flush=True)
"""


@pytest.mark.slow
def test_what_was_said_to_be_kept_survives_a_kill_and_two_writers(tmp_path):
    path = tmp_path / "a" / "marks.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, key], stdout=subprocess.PIPE, text=True) for key in "ab"
    ]
    said = []
    for writer in writers:
        for _ in range(30):
            writer.stdout.readline()
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        said.append(30 + len(writer.stdout.read().split("\n")) - 2)
        writer.wait()
    found = {(one["key"], one["object"]): one["mark"] for one in Marks(path).of("s")}
    for key, last in zip("ab", said, strict=True):
        assert all(found[f"{key}{n // 4000}", n % 4000] == f"m{n}" for n in range(last))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_cut_off_before_the_next(tmp_path, cut):
    path = tmp_path / "marks.jsonl"
    marks = Marks(path)
    for n, mark in enumerate(("keep", "broken", "\ud800 <b>\u2028")):
        marks.give("s", "key", n or None, mark)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = [{"key": "key", "object": None, "mark": "keep"}, {"key": "key", "object": 1, "mark": "broken"}]
    third = [{"key": "key", "object": 2, "mark": "\ud800 <b>\u2028"}]
    again = Marks(path)
    assert again.of("s") == (kept + third if cut == 1 else kept)  # only its line end is missing
    again.give("s", "key", None, "")
    again.give("t", "key", None, "other")
    assert Marks(path).of("s") == again.of("s") == (kept + third if cut == 1 else kept)[1:]
    assert all(json.loads(line)["mark"] is not None for line in path.read_bytes().splitlines())


def test_another_file_and_a_wrong_mark_are_one_line(tmp_path):
    path = tmp_path / "marks.jsonl"
    path.write_text('{"set": "s", "key": "k", "object": null, "mark": "keep"}\n{"set": "s"}\n')
    with pytest.raises(UserError, match="line 2: not a mark; met key None"):
        Marks(path)
    with pytest.raises(UserError, match="not a mark; met mark"):
        Marks(tmp_path / "other").give("s", "k", None, "m" * 101)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the mark is not kept"):
        Marks(tmp_path / "file" / "marks").give("s", "k", None, "keep")
