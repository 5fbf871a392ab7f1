"""Tables as text. Cells are what they say: nothing in them is markup, an emoji's name or a terminal's command."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from shards.printable import printable


def plain_table(title: str, **options: bool) -> Table:
    """A table with this title, to which `add_row` adds rows; options are those of `rich.table.Table`."""
    return Table(title=printable(title) or None, title_justify="left", **options)  # type: ignore[arg-type]


def add_row(table: Table, cells: Iterable[str]) -> None:
    """Add a row."""
    table.add_row(*map(printable, cells))


def plain_console(width: int | None = None, file: io.StringIO | None = None) -> Console:
    """A console that prints text as it is; on standard output where no `file` is given."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def table_text(table: Table, width: int) -> str:
    """The table as text of so many columns."""
    text = io.StringIO()
    plain_console(width, text).print(table)
    return text.getvalue().rstrip()
