"""Sa2VA's layout for fine-tuning, read by the source `folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.draw import polygon2mask

from shards.errors import BadInput, UserError
from tests.pipeline.built import HEIGHT, WIDTH, Found, box, jpeg, put, rle, through

SQUARE = [20, 10, 70, 10, 70, 50, 20, 50]
TRIANGLE = [5.5, 90, 60.25, 20.5, 120, 88]


def record(*pairs: tuple[str, Any], image: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"image": image, "mask": [mask for _, mask in pairs], "text": [text for text, _ in pairs], **more}


def write(root: Path, *records: Any, pictures: tuple[str, ...] = ("a.jpg",)) -> Path:
    put(root / "annotations.json", [*records])
    for name in pictures:
        put(root / "images" / name, jpeg())
    return root


def write_annotations(root: Path) -> None:
    """Write two sound pictures, of which one is in two records, and a record without a picture."""
    first = record(("The LEFT one.", [SQUARE]), ("both", [SQUARE, TRIANGLE]))
    again = record(("it", [TRIANGLE]))
    other = record(("a cup", [SQUARE]), image="b.jpg")
    write(root, first, again, other, {"mask": [], "text": []}, pictures=("a.jpg", "b.jpg"))


def as_drawn(polygon: list[float]) -> np.ndarray:
    """Pixels whose centres lie in a polygon, by scikit-image."""
    corners = np.array(polygon).reshape(-1, 2)[:, ::-1] - 0.5
    return polygon2mask((HEIGHT, WIDTH), corners)


def test_every_text_is_an_object_of_its_polygons(tmp_path):
    more = {"licence": "mine"}
    write(
        tmp_path,
        record(
            ("The LEFT one.", [SQUARE]), ("both", [SQUARE, TRIANGLE]), ("run lengths", rle(box(1, 2, 9, 8))), **more
        ),
    )
    sample = Found("folder", tmp_path, tmp_path).load()
    square, both, plain = (np.asarray(mask) for mask in sample.frames[0].masks)
    assert [item.texts for item in sample.objects] == [("The LEFT one.",), ("both",), ("run lengths",)]
    assert np.array_equal(square, box(10, 20, 50, 70)) and np.array_equal(plain, box(1, 2, 9, 8))
    expected = as_drawn(TRIANGLE) | box(10, 20, 50, 70)
    differs = both ^ expected  # COCO's rule rounds the outline: no pixel but one at the rim may differ
    inner = as_drawn([7.5, 89, 60.25, 22.5, 117, 87])
    assert differs.sum() < 0.03 * expected.sum() and not (differs & inner).any()
    assert sample.path == "images/a.jpg" and sample.more == {"source_json": [more]}


def test_records_of_one_picture_are_one_sample_and_equal_masks_one_object(tmp_path):
    write(tmp_path, record(("one", [SQUARE])), record(("two", [SQUARE]), ("three", [TRIANGLE]), image="images/a.jpg"))
    sample = Found("folder", tmp_path, tmp_path).load()
    assert [item.texts for item in sample.objects] == [("one", "two"), ("three",)]
    assert [item.more["annotations"] for item in sample.objects] == [[{"record": 0}, {"record": 1}], [{"record": 1}]]


def test_polygons_belong_to_the_picture_as_it_is_stored(tmp_path):
    write(tmp_path, record(("one", [SQUARE])))
    put(tmp_path / "images/a.jpg", jpeg(orientation=6))
    frame = Found("folder", tmp_path, tmp_path).load().frames[0]
    assert (frame.picture.height, frame.picture.width) == (HEIGHT, WIDTH)
    assert np.array_equal(np.asarray(frame.masks[0]), box(10, 20, 50, 70))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"mask": [[SQUARE]], "text": ["one"]}, "not a sample"),
        (record(("one", [SQUARE]), image=7), "not a sample"),
        ("text", "not a sample"),
        ({"image": "a.jpg", "text": ["one"]}, "not a sample"),
        ({"image": "a.jpg", "mask": [[SQUARE]], "text": "one"}, "not a sample"),
        (record(("one", [SQUARE]), image="none.jpg"), "no such file"),
        (record(("one", [SQUARE]), image="../none.jpg"), "path leaves the dataset"),
        ({"image": "a.jpg", "mask": [[SQUARE]], "text": ["one", "two"]}, "not as many masks as texts; met 1 and 2"),
        (record((7, [SQUARE])), "a text that is none"),
        (record(("one", [SQUARE[:5]])), "broken polygon"),
        (record(("one", SQUARE)), "broken polygon"),
        (record(("one", [SQUARE[:4]])), "0 pixels"),
        (record(("one", [])), "no mask"),
        (record(), "no region that can be used"),
    ],
)
def test_broken_records_are_bad_inputs_with_a_reason(tmp_path, broken, message):
    write(tmp_path, broken, record(("one", [SQUARE]), image="b.jpg"), pictures=("a.jpg", "b.jpg"))
    found = Found("folder", tmp_path, tmp_path)
    (bad,) = [path for path in found.paths if path != "images/b.jpg"]
    with pytest.raises(BadInput, match=message):
        found.load(bad)
    assert found.load("images/b.jpg").objects


def test_a_mask_that_cannot_be_used_is_left_out_and_counted(tmp_path):
    write(tmp_path, record(("one", [SQUARE[:5]]), ("two", [TRIANGLE])))
    sample = Found("folder", tmp_path, tmp_path).load()
    assert [item.texts for item in sample.objects] == [("two",)]
    assert sample.notes == {"regions left out: broken polygon": 1} and "left_out" in sample.more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image": "a.jpg", "mask": [', "annotations.json"),
        ({"images": [], "annotations": []}, "no records"),
        ([], "no records"),
    ],
)
def test_a_file_that_is_no_list_of_records_stops_the_run(tmp_path, content, message):
    put(tmp_path / "annotations.json", content)
    with pytest.raises(UserError, match=message):
        Found("folder", tmp_path, tmp_path)


def test_another_annotations_json_hides_no_other_form(tmp_path):
    put(tmp_path / "annotations.json", {"images": [], "annotations": []})
    put(tmp_path / "images/a.jpg", jpeg())
    (tmp_path / "masks").mkdir()
    assert Found("folder", tmp_path, tmp_path).counts["images without a mask"] == 1


def test_from_raw_to_verified(tmp_path):
    write_annotations(tmp_path / "raw")
    summary, samples = through("folder", tmp_path / "raw", tmp_path, max_bad=1)
    assert {path: len(meta["objects"]) for path, meta in samples.items()} == {"images/a.jpg": 3, "images/b.jpg": 1}
    assert summary.manifest.left_out == {"not a sample": 1}
    assert summary.manifest.options["found"] == {"records": 4, "records that are no sample": 1, "texts": 4}
