"""Pictures are found by the names in annotations, from any operating system."""

import os
import unicodedata

import pytest

from pipeline import finder as finding
from pipeline.finder import Finder
from pipeline.records import Records, RecordsWriter
from pipeline.refused import raise_refused
from shards.errors import BadInput
from tests.pipeline.built import put

NFC, NFD = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))


def add_names(finder, names, work):
    """Path and size of each name; and what each input was refused for."""
    with RecordsWriter(work / "records.sqlite") as writer:
        found = [finder.add(name, writer)[:2] for name in names]
        finder.refuse_shared(writer)
    records = Records(work / "records.sqlite")
    errors = {}
    for item in records.inputs():
        try:
            raise_refused(records.parts(item.path))
        except BadInput as error:
            errors[item.path] = error
    return found, errors


@pytest.mark.parametrize(
    ("there", "name"),
    [
        *(
            ("images/a/1.jpg", name)
            for name in ("a/1.jpg", r"a\1.jpg", "./a/1.jpg", "a//1.jpg", "A/1.JPG", " a/1.jpg ")
        ),
        *(
            ("images/a/1.jpg", name)
            for name in ("/home/x/images/a/1.jpg", r"C:\x\a\1.jpg", "images/a/1.jpeg", "../1.jpg")
        ),
        *(("images/a/1.jpg", name) for name in ("https://x.org/y/a/1.jpg?z=1", "/data/local-files/?d=set/a/1.jpg")),
        *(
            (f"images/{NFD}", NFC),
            (f"images/{NFC}", NFD),
            ("images/a b.jpg", "a%20b.jpg"),
            ("images/a%20b.jpg", "a b.jpg"),
        ),
        *(("Images/1.JPG", "1.jpg"), ("images/1.jpeg", "1.jpg"), ("images/cat.jpg", "upload/3/1f2e3d4c-cat.jpg")),
    ],
)
def test_names_in_other_spellings(tmp_path, there, name):
    put(tmp_path / there, b"123")
    if name == "../1.jpg":
        os.rename(tmp_path / "images/a/1.jpg", tmp_path / "images/1.jpg")
        there = "images/1.jpg"
    assert Finder(tmp_path, ["", "images"]).find(name) == (there, 3)


def test_the_unchanged_name_comes_first(tmp_path):
    for size, name in enumerate(("1.JPG", "images/1.jpg", "images/1.JPG", "images/%31.jpg"), 1):
        put(tmp_path / name, b"x" * size)
    finder = Finder(tmp_path, ["", "images"])
    assert finder.find("1.jpg") == ("images/1.jpg", 2) and finder.find("1.JPG") == ("1.JPG", 1)
    assert finder.find("%31.jpg") == ("images/%31.jpg", 4)


def test_a_name_alike_to_two_files_finds_neither(tmp_path):
    put(tmp_path / "a.jpg", b"1")
    put(tmp_path / "A.JPEG", b"1")
    found, errors = add_names(Finder(tmp_path, [""]), ["A.jpg"], tmp_path)
    assert found == [("A.jpg", 0)] and "no 'A.jpg' in ." in errors["A.jpg"].met


def test_no_folder_is_listed_where_all_names_are_found_unchanged(tmp_path, monkeypatch):
    put(tmp_path / "images/1.jpg", b"1")
    monkeypatch.setattr(finding, "list_names", None)
    assert Finder(tmp_path, ["", "images", "none"]).find("1.jpg") == ("images/1.jpg", 1)


def test_a_missing_file_is_refused_with_the_searched_folders(tmp_path):
    put(tmp_path / "images/photo_001.jpg", b"1")
    put(tmp_path / "elsewhere/dog.jpg", b"1")
    found, errors = add_names(Finder(tmp_path, ["", "images", "none"]), ["photo_01.jpg", "x/dog.png"], tmp_path)
    assert found == [("photo_01.jpg", 0), ("x/dog.png", 0)]
    error = errors["photo_01.jpg"]
    assert error.what == "no such file"
    assert error.met == "no 'photo_01.jpg' in ., images; the nearest name is 'images/photo_001.jpg'"
    assert errors["x/dog.png"].met.endswith("the nearest name is 'elsewhere/dog.jpg'")


def test_the_nearest_name_is_searched_a_few_times_only(tmp_path):
    put(tmp_path / "photo_001.jpg", b"1")
    _, errors = add_names(Finder(tmp_path, [""]), [f"photo_{n}.jpg" for n in range(40)], tmp_path)
    assert sum("nearest" in error.met for error in errors.values()) == 20 and len(errors) == 40


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a\0.jpg", "a" * 300, "\ud800.jpg"])
def test_nothing_is_found_outside(tmp_path, name):
    put(tmp_path / "x.jpg", b"1")
    finder = Finder(tmp_path / "images", [""])
    (tmp_path / "images").mkdir()
    assert finder.find(name) == (name, 0)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (("a/x.jpg", "b/x.jpg"), "images/x.jpg"),
        (("b/x.jpg", "images/x.jpg"), "images/x.jpg"),
        (("images/x.jpg", "b/x.jpg"), "images/x.jpg"),
        (("X.jpg", "x.jpg"), "images/x.jpg"),
        (("x.jpg", "X.jpg"), "images/x.jpg"),
        (("/m/train/x.jpg", "/m/val/x.jpg"), "x.jpg"),
        (("1f2e3d4c-x.jpg", "2f2e3d4c-x.jpg"), "x.jpg"),
        (("a/000000000009.jpg", "b/000000000009.jpg"), "images/000000000009.jpg"),
    ],
)
def test_names_of_two_pictures_do_not_share_a_file(tmp_path, names, there):
    put(tmp_path / there, b"1")
    found, errors = add_names(Finder(tmp_path, ["", "images"]), [*names, *names], tmp_path)
    assert there in errors and all(path in errors for path, _ in found)
    assert {error.what for error in errors.values()} == {finding.SHARED}
    assert all(name.lstrip("/") in errors[there].met for name in names)


@pytest.mark.parametrize(
    "names",
    [
        ("x.jpg", "a/x.jpg", "/m/a/x.jpg", "./x.jpg", "x.jpg"),
        ("train2014/COCO_train2014_000000000009.jpg", "train2017/000000000009.jpg", "000000000009.jpg"),
    ],
)
def test_names_of_one_picture_share_a_file(tmp_path, names):
    there = "images/x.jpg" if "x" in names[0] else "images/000000000009.jpg"
    put(tmp_path / there, b"12")
    found, errors = add_names(Finder(tmp_path, ["", "images"]), names, tmp_path)
    assert {*found} == {(there, 2)} and not errors


def test_a_dangling_link_is_found(tmp_path):
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "gone.jpg", tmp_path / "images/1.jpg")
    found, errors = add_names(Finder(tmp_path, ["", "images"]), ["1.jpg"], tmp_path)
    assert found == [("images/1.jpg", 0)] and not errors  # reading it fails with the target of the link


def test_hidden_files_are_not_taken_for_others(tmp_path):
    put(tmp_path / "._1.JPG", b"1")
    put(tmp_path / ".ipynb_checkpoints/1.jpg", b"1")
    assert Finder(tmp_path, [""]).find("1.jpg") == ("1.jpg", 0)


def test_a_name_without_its_folder_that_several_files_have_finds_none(tmp_path):
    for folder in ("images", "data", "images/b"):
        put(tmp_path / folder / "x.jpg", folder.encode())
    names = ["a/x.jpg", "/m/x.jpg", "x.jpg", "b/x.jpg"]
    found, errors = add_names(Finder(tmp_path, ["images", "data"]), names, tmp_path)
    assert found == [("images/a/x.jpg", 0), ("/m/x.jpg", 0), ("images/x.jpg", 6), ("images/b/x.jpg", 8)]
    for path, name in (("images/a/x.jpg", "a/x.jpg"), ("/m/x.jpg", "/m/x.jpg")):
        assert str(errors[path]).startswith(f"a name of several files; met {name!r}: data/x.jpg, images/x.jpg")


def test_links_to_one_file_are_not_several(tmp_path):
    put(tmp_path / "images/x.jpg", b"12")
    os.symlink(tmp_path / "images", tmp_path / "data")
    os.link(tmp_path / "images/x.jpg", tmp_path / "x.jpg")
    assert Finder(tmp_path, ["data", "images", ""]).find("a/x.jpg") == ("data/x.jpg", 2)


def test_a_name_with_its_folder_goes_before_its_end(tmp_path):
    put(tmp_path / "x.jpg", b"1")
    put(tmp_path / "images/a/x.jpg", b"12")
    assert Finder(tmp_path, ["", "images"]).find("a/x.jpg") == ("images/a/x.jpg", 2)
