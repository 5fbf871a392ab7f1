"""The registry of sources, and the way in for a source of one's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.sources import SOURCES, Source, choices_of, chosen_source, source_named
from shards.errors import UserError

OWN = """
from pipeline.sources import Source
class Own(Source):
    name = {name!r}
    def find(self, root, choices, records): return {{}}
    def load(self, root, path, options, parts): raise NotImplementedError
class Half(Source):
    name = "half"
    def load(self, root, path, options, parts): raise NotImplementedError
class Other: name = "other"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_registered_under_its_own_name(name):
    source = source_named(name)
    assert isinstance(source, Source) and source.name == name
    assert source.choices.keys() <= {"split", "split_by", "frames", "void", "mask_slack"}


def test_sources_are_imported_when_they_are_asked_for():
    code = "import sys, pipeline.sources; assert not {'av', 'ijson', 'pycocotools'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_source_of_ones_own_from_the_current_folder(here):
    (here / "mine.py").write_text(OWN.format(name="my-data_2"))
    source = chosen_source("mine:Own")
    assert source.name == "my-data_2" and choices_of(source, {"split": None}) == {}
    assert [*source.files("a.jpg", iter(()))] == ["a.jpg"] and source.options(here, []) == {}
    with pytest.raises(UserError, match="not an option of this source; met --split; wanted no such option"):
        choices_of(source, {"split": "train"})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nowhere:Own", "nowhere:Own: no such source; met No module named 'nowhere'; wanted MODULE:CLASS"),
        ("mine:Gone", "no such source; met module 'mine' has no attribute 'Gone'"),
        (":Own", "no such source"),
        ("mine:", "no such source"),
        (".mine:Own", "no such source"),
        ("mine:Other", "not a source; met <class 'mine.Other'>; wanted a subclass of Source with find and load"),
        ("mine:Half", "not a source; met no method find"),
        ("mine:Own", "name of a source; met 'sav'; wanted a name that no other source has"),
        ("mine", "unknown source; met mine; wanted sav or"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(here, text, error):
    (here / "mine.py").write_text(OWN.format(name="sav"))
    with pytest.raises(UserError) as caught:
        chosen_source(text)
    assert error in str(caught.value)


def test_nothing_that_a_set_names_is_imported(here):
    (here / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="unknown source; met evil:Own"):
        source_named("evil:Own")
