"""Pickles of plain data from every Python and from numpy; nothing else is read, and nothing is called."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pickles import read_pickle
from shards.errors import UserError

PLAIN = [{"ref_id": 1, "texts": ["the cat", "café"], "score": 0.5, "crowd": False, "tokens": ("a",)}]


def put(folder: Path, data: bytes) -> Path:
    (folder / "refs.p").write_bytes(data)
    return folder / "refs.p"


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_are_numbers(tmp_path, protocol):
    values = [
        np.int64(5),
        np.int32(-7),
        np.uint8(200),
        np.float32(0.5),
        np.float64(1e-9),
        np.bool_(True),
        np.int64(2**40),
    ]
    read = read_pickle(put(tmp_path, pickle.dumps({"a": values, "b": PLAIN}, protocol)))
    assert read == {"a": [value.item() for value in values], "b": PLAIN}
    assert [type(value) for value in read["a"]] == [type(value.item()) for value in values]


def test_numbers_of_another_byte_order_and_of_numpy_1(tmp_path):
    little = pickle.dumps(np.int32(258), 2)
    big = little.replace(b"\x00<", b"\x00>").replace(b"\x02\x01\x00\x00", b"\x00\x00\x01\x02")
    assert read_pickle(put(tmp_path, little)) == 258 == read_pickle(put(tmp_path, big)) and little != big
    old = pickle.dumps(np.int64(9), 2).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    assert b"numpy.core" in old and read_pickle(put(tmp_path, old)) == 9


def test_json_in_the_place_of_a_pickle_is_read(tmp_path):
    for data in (json.dumps(PLAIN).encode(), b"\xef\xbb\xbf\n" + json.dumps({"a": PLAIN}).encode()):
        assert read_pickle(put(tmp_path, data)) == json.loads(data.decode("utf-8-sig"))
    with pytest.raises(UserError, match=r"refs\.p: not whole JSON"):
        read_pickle(put(tmp_path, b'[{"ref_id"'))


class Calls:
    def __init__(self, *what: Any) -> None:
        self._what = what

    def __reduce__(self) -> Any:
        return self._what


@pytest.mark.parametrize(
    "value",
    [
        Calls(print, ("called",)),
        np.zeros(3),
        np.dtype("O"),
        np.array(["text"])[0],
        np.datetime64("2020-01-01"),
        Calls(np.dtype, ([("a", "i4")],)),
        Calls(getattr, (1, "real")),
    ],
)
def test_anything_else_is_refused(tmp_path, value, capsys):
    with pytest.raises(UserError, match=r"a pickle of more than plain data; met .*it could run code; nothing was run"):
        read_pickle(put(tmp_path, pickle.dumps([value])))
    assert not capsys.readouterr().out


def test_advice_for_a_truncated_pickle_is_to_download_it_again(tmp_path):
    with pytest.raises(UserError, match=r"not a whole pickle; met .*; download it again"):
        read_pickle(put(tmp_path, pickle.dumps(PLAIN)[:40]))
    with pytest.raises(UserError, match=r"not a whole pickle; met .*; wanted what pickle\.dump writes$"):
        read_pickle(put(tmp_path, b"nothing of this kind"))


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "refs(unc).p")
    with pytest.raises(UserError, match="a named pipe, not a regular file"):
        read_pickle(tmp_path / "refs(unc).p")
