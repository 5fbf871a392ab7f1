"""SA-1B in each of its usual layouts, with every known fault of such files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.derive import Deriver
from shards.errors import BadInput, DroppedInput, UserError
from shards.preview import preview
from shards.reader import ShardSet
from shards.verification import verify
from tests.pipeline.built import tar_of
from tests.pipeline.sources.test_coco import HEIGHT, PHOTO, WIDTH, blob, jpeg, load_all, packed, shard

Files = dict[str, bytes]


def photo(**options: Any) -> bytes:
    file = io.BytesIO()
    PHOTO.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def annotation(number: int, mask: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    mask = blob() if mask is None else mask
    return {
        **{"id": number, "segmentation": packed(mask), "area": int(mask.sum()), "bbox": [5.0, 5.0, 49.0, 39.0]},
        **{"predicted_iou": 0.9430000000000001, "stability_score": 0.96, "point_coords": [[30.0, 20.5]]},
        **{"crop_box": [0, 0, WIDTH, HEIGHT], **more},
    }


def annotation_json(number: int, *annotations: Any, **image: Any) -> bytes:
    about = {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"sa_{number}.jpg", **image}
    return json.dumps({"image": about, "annotations": annotations or [annotation(70 + number)]}).encode()


def pair(number: int, *annotations: Any) -> Files:
    return {f"sa_{number}.jpg": photo(), f"sa_{number}.json": annotation_json(number, *annotations)}


def write(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def below(folder: str, files: Files) -> Files:
    return {folder + name: data for name, data in files.items()}


def split(files: Files, prefix: str = "") -> Files:
    """In `img/` and `js/`."""
    return {f"{prefix}{'js' if name.endswith('json') else 'img'}/{name}": data for name, data in files.items()}


LAYOUTS: dict[str, tuple[Callable[[Files, Files], Files], list[str]]] = {
    "flat": (lambda a, b: {**a, **b}, ["sa_1.jpg", "sa_2.jpg"]),
    "folder a tar": (
        lambda a, b: {**below("sa_000000/", a), **below("sa_000001/", b)},
        ["sa_000000/sa_1.jpg", "sa_000001/sa_2.jpg"],
    ),
    "img and js": (lambda a, b: split({**a, **b}), ["img/sa_1.jpg", "img/sa_2.jpg"]),
    "img and js in folders": (
        lambda a, b: {**split(a, "sa_000000/"), **split(b, "sa_000001/")},
        ["sa_000000/img/sa_1.jpg", "sa_000001/img/sa_2.jpg"],
    ),
    "tars": (
        lambda a, b: {"sa_000000.tar": tar_of(a), "more/sa_000001.tar": tar_of(below("./", b))},
        ["more/sa_000001.tar/sa_2.jpg", "sa_000000.tar/sa_1.jpg"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_sample_an_image_in_every_layout(tmp_path, layout):
    arrange, paths = LAYOUTS[layout]
    samples, found = load_all(write(tmp_path, arrange(pair(1), pair(2))), "sa1b")
    assert [*samples] == paths
    assert found == {"images": 2, "images without a json": 0, "jsons without an image": 0}
    for path, sample in samples.items():
        number = int(path[-5])
        assert np.array_equal(sample.frames[0].picture, np.asarray(Image.open(io.BytesIO(photo()))))
        assert np.array_equal(sample.frames[0].masks[0], blob())
        assert [item.id for item in sample.objects] == [str(70 + number)]
        assert sample.more["image"]["image_id"] == number


def test_all_masks_of_an_image_with_their_annotations(tmp_path):
    inner = np.zeros_like(blob())
    inner[10:20, 10:20] = 1
    whole = annotation(7)
    part = annotation(7, inner, crop_box=[0.0, 0.0, 120.0, 90.0], extra={"a": [1]})
    (sample,) = load_all(write(tmp_path, pair(1, whole, part)), "sa1b")[0].values()
    assert [np.asarray(mask).sum() for mask in sample.frames[0].masks] == [2000, 100]
    assert [item.texts for item in sample.objects] == [(), ()]  # ids are no classes
    for item, expected in zip(sample.objects, (whole, part), strict=True):
        assert item.more == {key: value for key, value in expected.items() if key not in ("id", "segmentation")}


def test_an_image_without_a_json_and_a_json_without_an_image(tmp_path):
    first = pair(1)
    second = pair(2)
    third = pair(3)
    fourth = pair(4)
    del first["sa_1.json"], second["sa_2.jpg"], third["sa_3.json"], fourth["sa_4.jpg"]
    root = write(tmp_path, {**first, **split(second), "sa_000000.tar": tar_of({**third, **fourth, **pair(5)})})
    samples, found = load_all(root, "sa1b")
    assert found == {"images": 3, "images without a json": 2, "jsons without an image": 2}
    reasons = {path: getattr(sample, "what", "") for path, sample in samples.items()}
    assert reasons == {
        "img/sa_2.jpg": "a json without its image",
        "sa_000000.tar/sa_3.jpg": "an image without its json",
        "sa_000000.tar/sa_4.jpg": "a json without its image",
        "sa_000000.tar/sa_5.jpg": "",
        "sa_1.jpg": "an image without its json",
    }
    assert not any(isinstance(sample, DroppedInput) for sample in samples.values())


def test_an_image_that_shows_nothing_annotated_is_dropped(tmp_path):
    empty = annotation_json(1).replace(annotation_json(1)[annotation_json(1).index(b"[{") :], b"[]}")
    (error,) = load_all(write(tmp_path, {**pair(1), "sa_1.json": empty}), "sa1b")[0].values()
    assert isinstance(error, DroppedInput)


def test_masks_that_cannot_be_used_are_named(tmp_path):
    objects = [
        annotation(1),
        annotation(2, np.zeros_like(blob())),
        annotation(3, np.ones((HEIGHT, WIDTH + 1), np.uint8)),
        annotation(4, segmentation={"size": [HEIGHT, WIDTH], "counts": "`^51"}),
        annotation(5, segmentation={"size": [HEIGHT, WIDTH], "counts": [1, 2]}),
        annotation(6, segmentation=None),
    ]
    (sample,) = load_all(write(tmp_path, pair(1, *objects)), "sa1b")[0].values()
    assert [item.id for item in sample.objects] == ["1"]
    assert {item["id"]: item["reason"] for item in sample.more["left_out"]} == {
        "2": "empty mask",
        "3": "mask and picture differ in size",
        "4": "broken run lengths",
        "5": "broken run lengths",
        "6": "no mask",
    }


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (annotation_json(1)[:-9], "not whole JSON"),
        (b"", "not whole JSON"),
        (b"\xff\xfe", "not a text file of UTF-8"),
        (b"[" * 100_000, "JSON nested too deep"),
        (b"[]", "not SA-1B's json"),
        (b'{"image": {"height": 1}, "annotations": []}', "not SA-1B's json"),
        (annotation_json(1, height="90"), "not SA-1B's json"),
        (annotation_json(1, 7), "not SA-1B's json"),
        (annotation_json(2), "json of another image"),
        (annotation_json(1, height=WIDTH, width=HEIGHT), "picture and annotation differ in size"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer, not the file"),
    ],
)
def test_jsons_that_cannot_be_used(tmp_path, data, what):
    (error,) = load_all(write(tmp_path, {**pair(1), "sa_1.json": data}), "sa1b")[0].values()
    assert isinstance(error, BadInput) and error.what == what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (photo()[:1500], "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer, not the file"),
    ],
)
@pytest.mark.parametrize("in_tar", [False, True])
def test_images_that_cannot_be_used(tmp_path, data, what, in_tar):
    files = {**pair(1), "sa_1.jpg": data}
    root = write(tmp_path, {"sa_000000.tar": tar_of(files)} if in_tar else files)
    (error,) = load_all(root, "sa1b")[0].values()
    assert isinstance(error, BadInput) and error.what == what


def test_masks_are_drawn_on_the_stored_bitmap(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (sample,) = load_all(write(tmp_path, {**pair(1), "sa_1.jpg": photo(exif=exif)}), "sa1b")[0].values()
    assert sample.frames[0].picture.size == (WIDTH, HEIGHT)


def test_a_tar_that_ends_early_gives_what_it_holds_and_a_line_in_the_ledger(tmp_path):
    whole = tar_of({**pair(1), **pair(2)})
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        second = next(info for info in tar if info.name == "sa_2.jpg")
    for size in (second.offset_data + 100, second.offset + 100, second.offset, 0, 100):
        samples, found = load_all(write(tmp_path, {"sa_000000.tar": whole[:size]}), "sa1b")
        assert samples["sa_000000.tar"].what == "not a whole tar file", size
        assert found["images"] == (size > 1000) == len(samples) - 1


def test_a_damaged_header_is_not_the_end(tmp_path):
    whole = bytearray(tar_of({**pair(1), **pair(2)}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        whole[next(info for info in tar if info.name == "sa_2.jpg").offset + 150] ^= 1
    samples, found = load_all(write(tmp_path, {"sa_000000.tar": bytes(whole)}), "sa1b")
    assert samples["sa_000000.tar"].what == "not a whole tar file" and found["images"] == 1


def test_a_pointer_instead_of_a_tar(tmp_path):
    (error,) = load_all(write(tmp_path, {"sa_000000.tar": b"version https://git-lfs.github.com"}), "sa1b")[0].values()
    assert error.what == "a pointer, not the file"


@pytest.mark.parametrize("name", ["../sa_9.jpg", "/etc/sa_9.jpg", "a/../../sa_9.json"])
def test_tar_members_never_leave_their_folder(tmp_path, name):
    samples, found = load_all(write(tmp_path, {"sa_000000.tar": tar_of({**pair(1), name: photo()})}), "sa1b")
    refused = [error for error in samples.values() if isinstance(error, BadInput)]
    assert [error.what for error in refused] == ["path leaves the archive"] and len(samples) == 2
    assert found["path leaves the archive"] == 1


def test_links_in_a_tar_are_no_images(tmp_path):
    out = io.BytesIO(tar_of(pair(1)))
    with tarfile.open(fileobj=out, mode="a") as tar:
        for name, kind in (("sa_8.jpg", tarfile.SYMTYPE), ("sa_9.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
    assert [*load_all(write(tmp_path, {"sa_000000.tar": out.getvalue()}), "sa1b")[0]] == ["sa_000000.tar/sa_1.jpg"]


@pytest.mark.parametrize("folder", ["", "sa_000000/"])
def test_only_the_rest_of_a_partly_unpacked_tar_is_read(tmp_path, folder):
    root = write(tmp_path, {**below(folder, pair(1)), "sa_000000.tar": tar_of({**pair(1), **pair(2)})})
    samples, found = load_all(root, "sa1b")
    assert sorted(samples) == sorted([f"{folder}sa_1.jpg", "sa_000000.tar/sa_2.jpg"])
    assert found["tar members left for their unpacked files"] == 2 and found["images"] == 2


def test_a_folder_without_sa1b_files(tmp_path):
    with pytest.raises(UserError, match="no sa1b files found"):
        shard("sa1b", tmp_path, tmp_path / "out")


def test_from_raw_files_to_preview(tmp_path):
    root = tmp_path / "sa1b"
    lonely = {"sa_3.jpg": photo()}
    inner = np.zeros_like(blob())
    inner[12:16, 12:16] = 1
    nested = pair(2, annotation(1), annotation(2, inner))
    write(root, {**pair(1), **lonely, "sa_000000.tar": tar_of(nested)})
    jpeg(root / "notes.jpg")
    out = tmp_path / "shards" / "sa1b"
    manifest = shard("sa1b", root, out).manifest
    assert (manifest.inputs, manifest.samples, manifest.objects) == (3, 2, 3)
    assert manifest.left_out == {"an image without its json": 1}
    raw = Deriver(root, tmp_path)
    report = verify([out], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok, report.table()
    samples = {sample["meta"]["path"]: sample for sample in ShardSet(out)}
    meta = samples["sa_000000.tar/sa_2.jpg"]["meta"]
    assert samples["sa_000000.tar/sa_2.jpg"]["masks"].shape == (2, 1024, 1024)
    assert meta["objects"][1]["predicted_iou"] == 0.9430000000000001 and meta["has_paired_frame"] is False
    assert preview(out, tmp_path / "page").exists()
    # A mask changed in the raw json is noticed.
    other = pair(1, annotation(71, np.ascontiguousarray(blob()[::-1])))
    write(root, other)
    assert not verify([out], derive=raw.derive, same_inputs=raw.same_inputs).ok
