"""Conversations without pictures, in JSON and in JSON Lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from shards.errors import BadInput, UserError
from tests.pipeline.built import Found, put, through
from tests.pipeline.sources.test_llava import talk

RECORDS = [
    {"id": 1, "conversations": talk("Hi [SEG] <p>", " Hello. ")},
    {"id": 2, "conversations": talk("Why?", "So.", "And <image>\n", "Then.")},
]


def write_text(root: Path) -> Path:
    """Write a list, and lines of which the second one is broken."""
    put(root / "a.json", RECORDS)
    lines = [json.dumps(RECORDS[1]).encode(), b'{"conversations": [', b"", b"[1]"]
    put(root / "b.jsonl", gzip.compress(b"\n".join(lines), mtime=0))
    put(root / "readme.txt", b"")
    return root


def test_every_record_of_every_file_is_a_sample(tmp_path):
    found = Found("text", write_text(tmp_path / "raw"), tmp_path)
    assert found.paths == ["a.json#0", "a.json#1", "b.jsonl#0", "b.jsonl#1", "b.jsonl#2"]
    sample = found.load("a.json#0")
    assert sample.more == {"turns": [{"question": "Hi [SEG] <p>", "answer": "Hello."}], "record": {"id": 1}}
    assert (sample.frames, sample.objects, sample.segmentable) == ((), (), False)
    for path in ("a.json#1", "b.jsonl#0"):
        assert found.load(path).more["turns"] == [
            {"question": "Why?", "answer": "So."},
            {"question": "And \n", "answer": "Then."},
        ]
    with pytest.raises(BadInput, match="not whole JSON"):
        found.load("b.jsonl#1")
    with pytest.raises(BadInput, match="not a record"):
        found.load("b.jsonl#2")
    assert Found("text", tmp_path / "raw", tmp_path, split="a").paths == ["a.json#0", "a.json#1"]


def test_a_record_of_a_picture_is_bad(tmp_path):
    put(tmp_path / "a.json", [{**RECORDS[0], "image": "a.jpg"}])
    with pytest.raises(BadInput, match=r"a record of a picture; met image: a\.jpg; .*--source llava or videoqa"):
        Found("text", tmp_path, tmp_path).load()


@pytest.mark.parametrize("content", [b'{\n "data": [1]\n}', b'{"a": 1', b"not JSON", b"\xff\xfe[\0"])
def test_other_files_stop_the_run(tmp_path, content):
    put(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=r"a\.json"):
        Found("text", tmp_path, tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    put(tmp_path / "raw/a.json", RECORDS)
    summary, samples = through("text", tmp_path / "raw", tmp_path)
    assert (summary.manifest.version, summary.manifest.samples, summary.manifest.objects) == (3, 2, 0)
    assert samples["a.json#1"]["turns"][1] == {"question": "And \n", "answer": "Then."}
