"""Pickles as data: dicts, lists, numbers and texts. Whatever would name a class or a function is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from pipeline.pictures import refuse_pointer
from shards.errors import UserError


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in a Python 2 protocol
            return _latin1
        if module in ("__builtin__", "builtins") and name in ("set", "frozenset", "bytearray"):
            return {"set": set, "frozenset": frozenset, "bytearray": _bytes}[name]
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
    if isinstance(data, int):  # so many zeros: a few bytes of pickle could take all memory
        raise _Refused("a bytearray by its length")
    return _latin1(data, encoding) if isinstance(data, str) else bytes(data)


def read_pickle(path: Path) -> Any:
    """What the pickle at `path` holds, of plain built-in types; texts of Python 2 as ASCII, or else Latin-1.

    Raises:
        UserError: no such file, not a whole pickle, or one that would call something.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror)) from None
    refuse_pointer(data, str(path))
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="ASCII").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _Refused as error:
        do = "it could run code; nothing was run"
        raise UserError("a pickle of more than plain data", where=str(path), met=str(error), do=do) from None
    except Exception as error:  # broken pickles raise many kinds
        met = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError("not a whole pickle", where=str(path), met=met) from None
