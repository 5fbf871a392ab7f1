"""Tests of what is printed: names and values that hold anything stay text, on their line."""

import ast
import errno
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import BadInput, UserError
from shards.printable import PrintableFormatter, os_error_text, printable, printable_lines
from shards.report import Failure, Report
from shards.tables import add_row, plain_table, table_text

REPOSITORY = Path(__file__).parents[2]
NASTY = [
    "\x1b[2J\x1b]0;title\x07",
    "[/red]",
    "[bold]",
    ":smile:",
    "a\u2028b",
    "a\x0bb\x0c",
    "\x85",
    "\u202etxt",
    "\udcff",
]


@given(st.text(st.characters(), max_size=40))
def test_nothing_that_a_terminal_acts_on_comes_through(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    shown.encode()  # no surrogates
    assert printable(shown) == shown
    assert printable_lines(text).count("\n") == text.count("\n")


@pytest.mark.parametrize("text", ["a photo.jpg", "grün.png", "写真.png", "می‌خواهم", "👩‍🚀.png", "a\u00a0b", r"a\b"])
def test_names_of_all_languages_stay_as_they_are(text):
    assert printable(text) == text


@pytest.mark.parametrize("kind", [UserError, BadInput])
@pytest.mark.parametrize("nasty", NASTY)
def test_a_message_is_one_line_of_printable_text(kind, nasty):
    error = kind(f"wrong {nasty}", where=f"folder/{nasty}.png", met=nasty, wanted=nasty, do=nasty)
    for text in (str(error), error.detail):
        assert printable(text) == text and len(text.splitlines()) == 1
    assert f"folder/{printable(nasty)}.png: wrong" in str(error)


def test_two_spaces_of_a_name_stay_two_and_a_name_without_end_is_shortened():
    assert str(UserError("wrong", where="a  b.png")) == "a  b.png: wrong"
    assert len(str(UserError("wrong", where="x" * 5000))) < 400


@pytest.mark.parametrize("nasty", NASTY)
def test_cells_and_titles_are_printed_literally(nasty):
    table = plain_table(f"set {nasty}")
    table.add_column("head")
    add_row(table, [f"cell {nasty}"])
    text = table_text(table, 120)
    assert f"set {printable(nasty)}" in text and f"cell {printable(nasty)}" in text
    assert printable_lines(text) == text


@pytest.mark.parametrize("nasty", NASTY)
def test_the_report_of_a_verification_is_printable(nasty):
    report = Report()
    report.fail(Failure(f"a{nasty}.tar", nasty, nasty, "wrong", nasty, nasty))
    text = report.table()
    assert f"a{printable(nasty)}.tar" in text and printable_lines(text) == text


def test_what_is_logged_is_printable():
    record = logging.LogRecord("trainer", logging.WARNING, "", 0, "%s: taken", ("\x1b[31m\udcff",), None)
    assert PrintableFormatter().format(record) == "\\x1b[31m\\udcff: taken"


def test_an_error_of_the_system_names_its_file():
    error = OSError(errno.ENAMETOOLONG, "File name too long", "a\x1b" + "b" * 5000)
    assert os_error_text(error).startswith("a\\x1bbbb") and os_error_text(error).endswith("): File name too long")
    assert len(os_error_text(error)) < 400


def test_tables_and_consoles_are_made_in_one_place():
    """Tables and consoles that are made elsewhere would read names as markup."""
    allowed = {"shards/tables.py", "trainer/doctor/checks.py"}
    for room in ("shards", "trainer", "pipeline", "inference"):
        for path in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Console", "Table"):
                    assert path.relative_to(REPOSITORY).as_posix() in allowed, path
