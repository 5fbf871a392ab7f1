"""Name the fault in broken JSON: what is wrong, at which line and byte, and what to do about it."""

from __future__ import annotations

import io
import re
from typing import BinaryIO, NamedTuple

import ijson
import numpy as np

from pipeline.text import AGAIN
from shards.errors import UserError

MAX_DEPTH = 200  # levels; annotations have less than ten, and parsers take memory for the square of it
_BLOCK = 1 << 16
_NOT_BRACKETS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
_AROUND = 64  # bytes before and after a fault that are examined
_CUT = "not whole JSON"
_BROKEN = "broken JSON"
TOO_DEEP = "JSON nested too deep"


class Nesting:
    """Counts how deep brackets nest in a text that comes in blocks. Brackets inside of strings do not count."""

    def __init__(self) -> None:
        self.deepest = 0
        self._depth = 0
        self._in_string = False
        self._escape = False

    def add(self, block: bytes) -> None:
        """Count the brackets of the next block."""
        if self._escape:
            self._escape = len(block) == 0
            block = block[1:]
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
    """A file of JSON for a parser: a block that nests too deep is refused before the parser gets it.

    Args:
        file: a buffered file from `open_text`.
        where: its name, for messages.
        error: the class of error to raise.
    """

    def __init__(self, file: BinaryIO, where: str, error: type[UserError]) -> None:
        self._file = file
        self._where = where
        self._error = error
        self._nesting = Nesting()
        self.start = self.end = 0
        """Range of the last block in bytes: a fault that the parser reports is in it."""

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
    """Return the error that names the fault of the JSON in `file`.

    Args:
        start: a byte before which there is no fault.
        message: reported where no fault is found.
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
                fault = _fault_between((before + block[:i])[-_AROUND:], after, str(failed))
                at = f"{fault.met} at line {lines}, byte {place + i}"
                return error(fault.what, where=where, met=at, wanted=fault.wanted, do=fault.do)
            events.clear()
        place += len(block)
        line += block.count(b"\n")
        before = (before + block)[-_AROUND:]
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


class _Fault(NamedTuple):
    """The parts of an error, as in `UserError`."""

    what: str
    met: str
    wanted: str
    do: str = ""


def _fault_between(before: bytes, after: bytes, message: str) -> _Fault:
    """Name the fault between the bytes `before` and `after`; `message` is the parser's."""
    word = re.search(rb"[-+\w.]*$", before)[0] + re.match(rb"[-+\w.]*", after)[0]  # type: ignore[index]
    last = before.rstrip()[-1:]
    if word.lower().lstrip(b"+-") in (b"nan", b"inf", b"infinity"):
        return _Fault(_BROKEN, word.decode(), "a number or null: JSON has no such value", "write null")
    if word in (b"True", b"False", b"None"):
        return _Fault(_BROKEN, word.decode(), "true, false or null", "write it with json.dump")
    if "overflow" in message:
        return _Fault(_BROKEN, f"the number {word[:24].decode('ascii', 'replace')}", "at most 64 bits")
    if last == b"," and after[:1] in (b"]", b"}"):
        return _Fault(_BROKEN, f"a comma before {after[:1].decode()}", "none after the last item")
    if "trailing garbage" in message and after[:1] in (b"{", b"["):
        return _Fault(_BROKEN, "a second JSON value", "one JSON value, not JSON Lines", "put the lines into one list")
    if "trailing garbage" in message and not after.strip(b"\0"):
        return _Fault(_BROKEN, "zero bytes", "the end of the file", AGAIN)
    if not before.strip() and after[:1] == b"<":
        return _Fault("a web page, not the file", ascii(after[:24].decode("latin-1")), "JSON", AGAIN)
    if "UTF8" in message:
        byte = re.findall(rb"[\x80-\xff]", before + after[:1])[-1]  # parsers may report the byte after it
        return _Fault(_BROKEN, f"the byte 0x{byte.hex()}", "UTF-8", "save it as UTF-8")
    if "comment" in message:
        return _Fault(_BROKEN, "a comment", "none: JSON has no comments")
    if "inside string" in message or "inside a string" in message:
        return _Fault(_BROKEN, f"{after[:1].decode('latin-1')!a} inside a text", "\\n, \\t, ... inside texts")
    if after[:1] == b"'":
        return _Fault(_BROKEN, "a single quote", "texts in double quotes", "write it with json.dump")
    return _Fault(_BROKEN, f"{after[:12].decode('latin-1')!a} behind {before[-12:].decode('latin-1')!a}", "JSON")


def json_fault_of_bytes(data: bytes, where: str, error: type[UserError], message: str) -> UserError:
    """Return the same error for a text in memory."""
    return json_fault(io.BytesIO(data), where, error, message=message)
