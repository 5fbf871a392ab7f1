"""Broken JSON: the fault is named with its line and byte, and depth is bounded first."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from pipeline.annotations import parse_json, read_items, read_json, read_pairs, read_records
from pipeline.json_faults import MAX_DEPTH, Nesting
from shards.errors import BadInput, UserError

VALUE = [{"id": n, "name": '[\\"{' * (n % 3), "box": [1.5, n]} for n in range(1500)]
TEXT = json.dumps(VALUE, indent=1).encode()


def put(folder: Path, data: bytes) -> Path:
    (folder / "a.json").write_bytes(data)
    return folder / "a.json"


@pytest.mark.parametrize("data", [TEXT, b"\xef\xbb\xbf" + TEXT, gzip.compress(b"\xef\xbb\xbf" + TEXT, mtime=0)])
def test_a_byte_order_mark_and_gzip_are_read(tmp_path, data):
    path = put(tmp_path, data)
    assert [*read_items(path)] == VALUE == read_json(path) == parse_json(data, "a")
    path = put(tmp_path, gzip.compress(json.dumps({"a": VALUE, "b": 1}).encode()))
    assert dict(read_pairs(path)) == {"a": VALUE, "b": 1} and [*read_items(path, "a.item")] == VALUE


START = TEXT[:-2]  # without its last bracket: 80 KB, more than a block


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b",\n{}", "not whole JSON; met its end at LINE, BYTE; wanted .*; download it again"),
        (b', {"name', "not whole JSON; met its end at"),
        (b",\nNaN]", "met NaN at LINE, BYTE; wanted a number or null.*; write null"),
        (b",\n-Infinity]", "met -Infinity at LINE, BYTE.*write null"),
        (b",\nnan]", "met nan at LINE"),
        (b",\nTrue]", "met True at LINE, BYTE; wanted true, false or null"),
        (b",\n{'id': 1}]", "met a single quote at LINE"),
        (b",\n1e999]", "met the number 1e999 at LINE"),
        (b",\n123456789012345678901234567890]", "the number 123456789012345678901234 at LINE"),
        (b",\n]", "met a comma before ] at LINE, BYTE; wanted none after the last item"),
        (b',{"a": 1,\n}]', "met a comma before } at LINE, BYTE"),
        (b"]\n{}", "met a second JSON value at LINE, BYTE; wanted one JSON value, not JSON Lines"),
        (b"]\n\0\0\0", "met zero bytes at LINE, BYTE; .*download it again"),
        (b',\n"caf\xe9"]', "met the byte 0xe9 at LINE.*; wanted UTF-8; save it as UTF-8"),
        (b",\n// all\n1]", "met a comment at LINE"),
        (b',\n"a\tb"]', "inside a text at LINE"),
        (b"\n1, 2]", "met ', 2]' behind '.*1' at LINE, BYTE; wanted JSON"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, end, message):
    lines = (START + end).count(b"\n") + 1 - end.count(b"// all\n")
    place = f"line {lines}"
    expected = re.escape(message).replace("LINE", place).replace("BYTE", r"byte \d+").replace(r"\.\*", ".*")
    readers = [lambda path: [*read_items(path)], read_json]
    for read in readers[: 1 if b"1234" in end else 2]:  # whole numbers of any size are JSON to Python
        with pytest.raises(UserError, match=rf"a\.json: .*{expected}") as caught:
            read(put(tmp_path, START + end))
        assert (caught.value.do == "download it again") == ("download it again" in message or "whole" in message)


def test_the_byte_of_a_fault(tmp_path):
    with pytest.raises(UserError, match=f"met NaN at line 1, byte {(1 << 17) + 1};"):
        [*read_items(put(tmp_path, b"[" + b" " * (1 << 17) + b"NaN]"))]
    with pytest.raises(UserError, match=r"a web page, not the file; .*download it again"):
        [*read_pairs(put(tmp_path, b"<!DOCTYPE html><html>"))]
    for nothing in (b"", b" \n"):
        with pytest.raises(UserError, match=r"not whole JSON; met .*download it again"):
            read_json(put(tmp_path, nothing))


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_nesting_is_bounded_before_anything_is_built(tmp_path, bracket):
    path = put(tmp_path, b'{"categories": [{"name": ' + bracket.encode() * 100_000)
    tracemalloc.start()
    for read in (lambda: [*read_items(path, "categories.item")], lambda: [*read_pairs(path)], lambda: read_json(path)):
        with pytest.raises(UserError, match=f"JSON nested too deep; met more than {MAX_DEPTH} levels; wanted at most"):
            read()
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    sound = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert read_json(put(tmp_path, sound)) == dict(read_pairs(path))


def test_depth_equals_a_count_char_by_char():
    def depth(text: bytes) -> int:
        level = deepest = 0
        in_string = escaped = False
        for char in text.decode():
            if escaped or (in_string and char == "\\"):
                escaped = not escaped
            elif char == '"':
                in_string = not in_string
            elif not in_string and char in "[{":
                deepest = max(deepest, level := level + 1)
            elif not in_string and char in "]}":
                level -= 1
        return deepest

    def value(rng: random.Random, level: int = 0) -> object:
        kind = rng.random()
        if level > 6 or kind < 0.3:
            return rng.choice(["a\\", "[[", '"[', '\\"{', "]]", 1, None, "\\\\", "é["])
        inner = [value(rng, level + 1) for _ in range(rng.randint(0, 3))]
        return inner if kind < 0.65 else {rng.choice("[x\\y") * 2 + str(n): one for n, one in enumerate(inner)}

    rng = random.Random(1)
    for _ in range(600):
        text = json.dumps(value(rng)).encode()
        nesting = Nesting()
        place = 0
        while place < len(text):
            size = rng.randint(1, 7)
            nesting.add(text[place : place + size])
            place += size
        assert nesting.deepest == depth(text), text


def test_one_sample_is_a_bad_input_and_a_whole_file_ends_the_run(tmp_path):
    path = put(tmp_path, b"[1,]")
    with pytest.raises(BadInput):
        read_json(path)
    with pytest.raises(UserError) as caught:
        [*read_items(path)]
    assert not isinstance(caught.value, BadInput)


def test_records_of_a_list_and_of_lines(tmp_path):
    lines = b"\n".join(json.dumps(item).encode() for item in VALUE)
    for data in (TEXT, lines, b" \n" + lines + b"\n\n", gzip.compress(b"\xef\xbb\xbf" + lines)):
        assert [*read_records(put(tmp_path, data))] == VALUE
    *sound, broken, last = read_records(put(tmp_path, lines + b'\n{"a": nul}\n{"a": 1}'))
    assert sound == VALUE and isinstance(broken, BadInput) and last == {"a": 1}
    assert broken.where == f"{tmp_path / 'a.json'}, line {len(VALUE) + 1}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{\n "data": []}', "neither one JSON list nor JSON Lines; met not whole JSON"),
        (b"", "not whole JSON; met an empty file"),
        (b"[1]\n[2]", "a second JSON value"),
        (b"{" * 9999, "neither one JSON list nor JSON Lines; met JSON nested too deep"),
    ],
)
def test_files_that_hold_no_records(tmp_path, data, message):
    with pytest.raises(UserError, match=rf"a\.json.*: .*{message}"):
        [*read_records(put(tmp_path, data))]
