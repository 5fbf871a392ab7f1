"""Names that differ only in what a reader does not see."""

import unicodedata

import pytest

from pipeline.spelling import coco_names, identifying_parts, look_alike, may_be_same, parts_of, spellings

NFC, NFD = (unicodedata.normalize(form, "Café 東京 ü.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((NFC, NFD), ("a.JPG", "A.jpg"), ("a.jpeg", "a.jpg"), ("a.TIFF", "a.tif"), ("a%20b.jpg", "a b.jpg")),
        *((" a.jpg ", "a.jpg"), ("a .jpg", "a.jpg"), ("Straße.png", "STRASSE.png"), ("%C3%A9.png", "é.png")),
    ],
)
def test_alike_names(one, other):
    assert one != other and look_alike(one) == look_alike(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.png", "a.jpg"), ("a1.jpg", "a2.jpg"), ("é.jpg", "e.jpg"), ("a-b", "a_b"), ("ab", "a b")],
)
def test_names_that_are_not_alike(one, other):
    assert look_alike(one) != look_alike(other)


@pytest.mark.parametrize(
    ("name", "parts", "elsewhere"),
    [
        ("a/b.jpg", ("a", "b.jpg"), False),
        ("./a//b.jpg", ("a", "b.jpg"), False),
        (r"a\b.jpg", ("a", "b.jpg"), False),
        (r"C:\photos\b.jpg", ("photos", "b.jpg"), True),
        (r"\\server\share\b.jpg", ("server", "share", "b.jpg"), True),
        ("/data/upload/2.jpg", ("data", "upload", "2.jpg"), True),
        (r"..\..\media\2.jpg", ("media", "2.jpg"), True),
        ("a/../b.jpg", ("b.jpg",), True),
        ("https://example.org/a/1.jpg?size=3#x", ("a", "1.jpg"), True),
        ("s3://bucket/a/1.jpg", ("a", "1.jpg"), True),
        ("file:///a/1.jpg", ("a", "1.jpg"), True),
        ("/data/local-files/?d=a/1.jpg", ("a", "1.jpg"), True),
        ("a#1?.jpg", ("a#1?.jpg",), False),
        ("c:a.jpg", ("c:a.jpg",), False),
    ],
)
def test_parts_of_a_name(name, parts, elsewhere):
    assert parts_of(name) == (parts, elsewhere)


def test_ends_of_a_name_are_used_only_where_allowed():
    assert spellings("/x/a/1.jpg", bare=True) == [("x", "a", "1.jpg"), ("a", "1.jpg"), ("1.jpg",)]
    assert spellings("/x/a/1.jpg", bare=False) == [("x", "a", "1.jpg"), ("a", "1.jpg")]
    assert spellings("a/1.jpg", bare=True) == [("a", "1.jpg"), ("1.jpg",)]
    assert spellings("a/1.jpg", bare=False) == [("a", "1.jpg")] and spellings("1.jpg", bare=False) == [("1.jpg",)]
    assert spellings("../1.jpg", bare=False) == spellings("/1.jpg", bare=False) == []
    assert spellings("u/3fd6a1b2-cat.jpg", bare=True)[-1] == ("cat.jpg",)
    assert spellings("a%2Fb.jpg", bare=False) == [("a%2Fb.jpg",), ("a", "b.jpg")]
    assert spellings("/", bare=True) == spellings("..", bare=True) == []


def test_parts_that_identify_a_picture():
    assert identifying_parts("train2017/000000000009.jpg") == identifying_parts("val2014/COCO_val2014_000000000009.jpg")
    assert identifying_parts("a/000000000009.jpg") != identifying_parts("b/000000000009.jpg")
    assert may_be_same(("x.jpg",), ("a", "x.jpg")) and not may_be_same(("b", "x.jpg"), ("a", "x.jpg"))
    assert not may_be_same(("X.jpg",), ("a", "x.jpg"))


def test_coco_names_are_in_one_order():
    for name in ("000000000009.jpg", "COCO_val2014_000000000009.jpg"):
        assert coco_names(name)[-3:] == coco_names("000000000009.jpg")
