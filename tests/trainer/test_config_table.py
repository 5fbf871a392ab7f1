"""The table of keys in docs/TRAINING.md matches the fields, and each field is described."""

import pytest

from shards.errors import UserError
from trainer.config import fields
from trainer.config_table import DOCUMENT, table, with_table


def test_the_document_is_current():
    document = DOCUMENT.read_text("utf-8")
    assert with_table(document) == document, "run: python -m trainer.config_table"


def test_every_field_has_a_description():
    for key, info in fields():
        assert info.description and info.description.rstrip().endswith("."), key


def test_a_row_has_key_default_values_and_description():
    lines = table().splitlines()
    assert "| `lora.r` | 128 | 1 to 4,096 | Rank of the adapters" in table()
    assert any(line.startswith("| `betas` | 0.9, 0.999 | 0 to below 1 | ") for line in lines)
    assert any(line.startswith("| `mix.NAME.weight` | 1.0 | > 0, at most 1,000,000 | ") for line in lines)
    assert any(line.startswith("| `data.check` | first | first, always, never | ") for line in lines)


def test_text_around_the_table_stays():
    document = DOCUMENT.read_text("utf-8")
    stale = document.replace("| `lora.r` | 128 |", "| `lora.r` | 64 |")
    assert stale != document
    assert with_table(stale) == document
    with pytest.raises(UserError, match="no place for the table"):
        with_table("# Training\n")
