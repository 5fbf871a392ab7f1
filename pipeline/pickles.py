"""Read pickles of plain data: dicts, lists, numbers (numpy's too) and texts. Other classes and functions are refused.

A file of JSON under a pickle's name is read as JSON.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations import parse_json
from pipeline.input_files import refuse_pointer
from pipeline.text import AGAIN
from shards.errors import UserError
from shards.regular_file import read_regular

_NUMBER = re.compile("[iuf][1248]|b1")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in a Python 2 protocol
            return _latin1
        if module in ("__builtin__", "builtins") and name in ("set", "frozenset", "bytearray"):
            return {"set": set, "frozenset": frozenset, "bytearray": _bytes}[name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _numpy_scalar
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent id")


class _Refused(Exception):
    pass


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused(f"an encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(data: Any = b"", encoding: str = "latin1") -> bytes:
    if isinstance(data, int):  # a length: a few bytes of pickle could take all memory
        raise _Refused("a bytearray by its length")
    return _latin1(data, encoding) if isinstance(data, str) else bytes(data)


class _Dtype:
    """A number type of numpy: its code (kind and bytes) and its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise _Refused(f"numpy's type {str(code)[:20]!r}")
        self._code = code
        self._order = "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("numpy's type of another byte order")
        self._order = state[1]

    def number(self, data: bytes) -> Any:
        value = np.frombuffer(data, np.dtype(self._order + self._code))
        if len(value) != 1:
            raise _Refused(f"{len(value)} numbers in one")
        return value[0].item()


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    """Return a number of numpy as a number of Python."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, str | bytes):
        raise _Refused("numpy's scalar of another type")
    return dtype.number(data.encode("latin1") if isinstance(data, str) else data)


def read_pickle(path: Path) -> Any:
    """Return the content of the pickle at `path`, in built-in types; texts of Python 2 are ASCII, or else Latin-1.

    Raises:
        UserError: no such file, not a whole pickle, or one that would call something.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror)) from None
    refuse_pointer(data, str(path))
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):  # no pickle begins with these
        return parse_json(data, str(path))
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="ASCII").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _Refused as error:
        raise UserError(
            "a pickle of more than plain data", where=str(path), met=str(error), do="it could run code; nothing was run"
        ) from None
    except Exception as error:  # broken pickles raise many kinds
        value = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(
            "not a whole pickle",
            where=str(path),
            met=value,
            wanted="what pickle.dump writes",
            do=AGAIN if isinstance(error, EOFError) or "truncated" in value else "",
        ) from None
