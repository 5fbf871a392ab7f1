"""Tables as text. Cells are printed literally: nothing in them is markup, an emoji's name or a terminal command."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from shards.printable import printable


def plain_table(title: str, **options: bool) -> Table:
    """Return a table with this title for `add_row`; options as of `rich.table.Table`."""
    return Table(title=printable(title) or None, title_justify="left", **options)  # type: ignore[arg-type]


def add_row(table: Table, cells: Iterable[str]) -> None:
    """Add a row of texts."""
    table.add_row(*map(printable, cells))


def plain_console(width: int | None = None, file: io.StringIO | None = None) -> Console:
    """Return a console that prints text literally, to `file` or standard output."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def table_text(table: Table, width: int) -> str:
    """Return the table as text of at most `width` columns."""
    text = io.StringIO()
    plain_console(width, text).print(table)
    return text.getvalue().rstrip()
