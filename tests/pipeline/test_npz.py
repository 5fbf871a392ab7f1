"""Arrays out of npz files whose npy headers are damaged while the zip around them is sound."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.npz import read_npz
from shards.errors import BadInput

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, ARRAY)
    return file.getvalue()


def read(folder: Path, member: bytes) -> np.ndarray:
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("frame1.npy", member)
    return read_npz(path, ["frame1"], 1 << 20)["frame1"]


def with_header(text: str) -> bytes:
    """An npy file of version 1.0 with this text as its header."""
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + ARRAY.tobytes()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4 , }",  # tokenize.TokenError
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L, }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 12.0), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 4), }",
        "{'descr': '<f4', 'fortran_order': 'yes', 'shape': (3, 4), }",
        "-" * 9000 + "1",
        "(" * 9000,
        "[" * 150 + "]" * 150,
        "'" * 3,
        "\x00",
        "'''",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
    ],
)
def test_a_header_that_numpy_cannot_read_is_a_bad_input(tmp_path, header):
    with pytest.raises(BadInput) as caught:
        read(tmp_path, with_header(header))
    assert caught.value.met and caught.value.wanted and "\n" not in caught.value.met


def test_damaged_bytes_of_a_header_give_the_array_or_a_bad_input(tmp_path):
    rng = random.Random(4)
    whole = npy()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(128)] = rng.choice(b" ()[]{}'\",:L\\0#\n\x00\xff-+~1")
        try:
            read(tmp_path, bytes(damaged))
        except BadInput:
            refused += 1
    assert refused > 200
    assert np.array_equal(read(tmp_path, whole), ARRAY)
