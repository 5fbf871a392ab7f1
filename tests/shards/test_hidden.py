"""Names that operating systems and tools leave among data."""

import pytest

from shards.hidden import is_hidden, is_hidden_path, visible_counterpart


@pytest.mark.parametrize(
    "name",
    [
        *(
            "._a.jpg",
            "._set-000000.tar",
            ".DS_Store",
            "__MACOSX",
            "Thumbs.db",
            "THUMBS.DB",
            "desktop.ini",
            "Desktop.ini",
        ),
        *(".ipynb_checkpoints", "@eaDir", ".git", "$RECYCLE.BIN", "lost+found", "a.jpg:Zone.Identifier", ".a.jpg.Xy12"),
    ],
)
def test_what_systems_and_tools_leave_is_hidden(name):
    assert is_hidden(name)
    assert is_hidden_path(f"photos/{name}/a.jpg") and is_hidden_path(f"photos/{name}")


@pytest.mark.parametrize("name", ["a.jpg", "_a.jpg", "a..jpg", "a._b.jpg", "Thumbs.jpg", "macosx", ".", "..", "e.aDir"])
def test_other_names_are_not_hidden(name):
    assert not is_hidden(name) and not is_hidden_path(f"./photos/{name}")


def test_a_hidden_file_belongs_to_a_visible_one():
    for name in ("._a.jpg", ".a.jpg", "a.jpg:Zone.Identifier"):
        assert visible_counterpart(name) == "a.jpg"
