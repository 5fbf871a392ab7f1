"""Why a text is not the JSON that was wanted: the fault with its line and byte, and what helps against this one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import BinaryIO

import ijson
import numpy as np

from pipeline.text import AGAIN
from shards.errors import UserError

MAX_DEPTH = 200  # levels; annotations have less than ten, and parsers take memory for the square of it
_BLOCK = 1 << 16
_NOT_BRACKETS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
_AROUND = 64  # bytes before and behind a fault that are looked at
_CUT = "not whole JSON"
_BROKEN = "broken JSON"
TOO_DEEP = "JSON nested too deep"


class Nesting:
    """How deep brackets nest in a text that comes in blocks. Brackets inside of strings are none."""

    def __init__(self) -> None:
        self.deepest = 0
        self._depth = 0
        self._in_string = False
        self._escape = False

    def add(self, block: bytes) -> None:
        """Take the next block into account."""
        if self._escape:
            block, self._escape = block[1:], len(block) == 0
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
            self._escape = block.endswith(b"\\")
        parts = block.translate(None, _NOT_BRACKETS).split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        if outside:
            depths = np.cumsum(np.frombuffer(outside.translate(_STEPS), np.int8), dtype=np.int64)
            self.deepest = max(self.deepest, self._depth + int(depths.max()))
            self._depth += int(depths[-1])


class DepthChecked:
    """A file of JSON that a parser reads: refuses what nests too deep before the parser sees it.

    Args:
        file: a buffered file from `open_text`.
        where: its name, for messages.
        error: the kind of error to raise.
    """

    def __init__(self, file: BinaryIO, where: str, error: type[UserError]) -> None:
        self._file = file
        self._where = where
        self._error = error
        self._nesting = Nesting()
        self.start = self.end = 0
        """The bytes of the last block: a fault that the parser finds lies in them."""

    def read(self, most: int) -> bytes:
        block = self._file.read(most)
        self.start = self.end
        self.end = self.end + len(block)
        self._nesting.add(block)
        if self._nesting.deepest > MAX_DEPTH:
            raise too_deep(self._where, self._error)
        return block


def too_deep(where: str, error: type[UserError]) -> UserError:
    return error(TOO_DEEP, where=where, met=f"more than {MAX_DEPTH} levels", wanted=f"at most {MAX_DEPTH}")


def json_fault(file: BinaryIO, where: str, error: type[UserError], start: int = 0, message: str = "") -> UserError:
    """The error that says what is wrong with the JSON in `file`.

    Args:
        start: a byte before which there is no fault.
        message: what to say where nothing is found.
    """
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    place = 0
    line = 1
    before = b""
    while block := file.read(min(_BLOCK, start - place) if place < start else _BLOCK):
        pieces = (block,) if place < start else (block[i : i + 1] for i in range(len(block)))
        for i, piece in enumerate(pieces):
            try:
                parser.send(piece)
            except (ijson.JSONError, UnicodeDecodeError) as failed:
                after = block[i : i + _AROUND] + file.read(_AROUND)
                lines = line + block[:i].count(b"\n")
                at = f"line {lines}, byte {place + i}"
                return _named((before + block[:i])[-_AROUND:], after, at, str(failed))(where, error)
            events.clear()
        place, line, before = place + len(block), line + block.count(b"\n"), (before + block)[-_AROUND:]
    try:
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError):
        return error(
            _CUT,
            where=where,
            met=f"its end at line {line}, byte {place}" if place else "an empty file",
            wanted="the JSON to its last bracket",
            do=AGAIN,
        )
    return error(_BROKEN, where=where, met=message or "a fault", wanted="JSON")


def _named(before: bytes, after: bytes, at: str, message: str) -> Callable[[str, type[UserError]], UserError]:
    """The fault between `before` and `after`, as a function that makes the error of it."""
    what = _BROKEN
    met = ""
    wanted = ""
    do = ""
    word = re.search(rb"[-+\w.]*$", before)[0] + re.match(rb"[-+\w.]*", after)[0]  # type: ignore[index]
    last = before.rstrip()[-1:]
    if word.lower().lstrip(b"+-") in (b"nan", b"inf", b"infinity"):
        met = word.decode()
        wanted = "a number or null: JSON has no such value"
        do = "write null"
    elif word in (b"True", b"False", b"None"):
        met = word.decode()
        wanted = "true, false or null"
        do = "write it with json.dump"
    elif "overflow" in message:
        met = f"the number {word[:24].decode('ascii', 'replace')}"
        wanted = "at most 64 bits"
    elif last == b"," and after[:1] in (b"]", b"}"):
        met = f"a comma before {after[:1].decode()}"
        wanted = "none after the last item"
    elif "trailing garbage" in message and after[:1] in (b"{", b"["):
        met = "a second JSON value"
        wanted = "one JSON value, not JSON Lines"
        do = "put the lines into one list"
    elif "trailing garbage" in message and not after.strip(b"\0"):
        met = "zero bytes"
        wanted = "the end of the file"
        do = AGAIN
    elif not before.strip() and after[:1] == b"<":
        what = "a web page, not the file"
        met = ascii(after[:24].decode("latin-1"))
        wanted = "JSON"
        do = AGAIN
    elif "UTF8" in message:
        byte = re.findall(rb"[\x80-\xff]", before + after[:1])[-1]  # the fault may show in the byte behind it
        met = f"the byte 0x{byte.hex()}"
        wanted = "UTF-8"
        do = "save it as UTF-8"
    elif "comment" in message:
        met = "a comment"
        wanted = "none: JSON has no comments"
    elif "inside string" in message or "inside a string" in message:
        met = f"{after[:1].decode('latin-1')!a} inside a text"
        wanted = "\\n, \\t, ... inside texts"
    elif after[:1] == b"'":
        met = "a single quote"
        wanted = "texts in double quotes"
        do = "write it with json.dump"
    else:
        met = f"{after[:12].decode('latin-1')!a} behind {before[-12:].decode('latin-1')!a}"
        wanted = "JSON"
    return lambda where, error: error(what, where=where, met=f"{met} at {at}", wanted=wanted, do=do)


def json_fault_of_bytes(data: bytes, where: str, error: type[UserError], message: str) -> UserError:
    """The same of a text in memory."""
    return json_fault(io.BytesIO(data), where, error, message=message)
