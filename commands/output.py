"""Printing for people."""

from __future__ import annotations

from typing import TextIO


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text, with what a terminal would act on escaped: names of files may hold anything."""
    from shards.printable import printable_lines

    print(printable_lines(str(text)), file=file)
