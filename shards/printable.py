"""Making text printable: what a terminal would act on, and what would end a line, is escaped.

Names of files and values out of data may hold anything: escape sequences that move the cursor or set a window's
title, marks that turn the direction of writing, line ends of other systems, halves of surrogate pairs.
"""

from __future__ import annotations

import logging
import sys
import unicodedata

_JOINERS = "\u200c\u200d"  # parts of words and of emoji
_HARMLESS = ("Zs", "Co", "Cn")  # spaces; characters that this Python does not know
_LONGEST = 300  # characters of a name in a message


def printable(text: str) -> str:
    """Return `text` on one line: control characters, line ends and surrogates become `\\x1b`, `\\u2028`, ..."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but with its line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str) -> str:
    """Return `text`, without its middle where it is longer than 300 characters."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]} ({len(text):,} characters)"


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) in _HARMLESS:
        return character
    return character.encode("unicode_escape").decode("ascii")


class PrintableFormatter(logging.Formatter):
    """Formats a log record as its message, made printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def set_up_output() -> None:
    """Make what this process logs printable, and escape characters that its terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort:  # what prints warnings where nobody has set up more
        logging.lastResort.setFormatter(PrintableFormatter())


def os_error_text(error: OSError) -> str:
    """Return one line that says why a file could not be used, such as "NAME: File name too long"."""
    name = error.filename
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    return printable(f"{shortened(str(name))}: {reason}" if name is not None else reason)
