"""Open Images segmentation in each of its usual layouts, with every known fault of such files."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import find_inputs
from pipeline.derive import Deriver
from pipeline.records import Records
from pipeline.sources import source_named
from shards.errors import DroppedInput, UserError
from shards.preview import preview
from shards.reader import ShardSet
from shards.verification import verify
from tests.pipeline.built import zipped
from tests.pipeline.sources.test_coco import HEIGHT, WIDTH, jpeg, load_all, shard

HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
CLASSES = 'LabelName,DisplayName\n/m/0bt9lr,Dog\n/m/0663v,"Pizza, hot"\n'
TABLE = "train-annotations-object-segmentation.csv"
FIRST = "000bd0b4fa27644c"
SECOND = "0a9e4fa5b0806fc2"
THIRD = "f0d5eb460eab4613"


def shape(width: int = 160, height: int = 120, left: float = 0.2) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 : height // 2, int(width * left) : int(width * 0.7)] = True
    return mask


def png(mask: np.ndarray, mode: str = "1") -> bytes:
    """A mask as a PNG; of mode RGB it is red, which stands for no number."""
    out = io.BytesIO()
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    image = Image.merge("RGB", [grey, *[Image.new("L", grey.size)] * 2]) if mode == "RGB" else grey.convert(mode)
    image.save(out, "PNG")
    return out.getvalue()


def mask_name(image: str, box: str = "5c80344b", mid: str = "m0bt9lr") -> str:
    return f"{image}_{mid}_{box}.png"


def row(image: str, box: str = "5c80344b", label: str = "/m/0bt9lr", **columns: str) -> str:
    values = {
        **{"MaskPath": mask_name(image, box, label.replace("/", "")), "ImageID": image, "LabelName": label},
        **{"BoxID": box, "BoxXMin": "0.64375", "BoxXMax": "0.896875", "BoxYMin": "0.33645833333333336"},
        **{"BoxYMax": "0.525", "PredictedIoU": "0.86864", "Clicks": "0.95498 0.65197 1;0.89370 0.56579 0", **columns},
    }
    return ",".join(values.values())


def write_openimages(
    root: Path,
    rows: list[str],
    files: dict[str, bytes],
    images: tuple[str, ...] = (FIRST,),
    end: str = "\n",
    **places: str,
) -> Path:
    """Write the table, the classes, photos and masks; give back the root."""
    put = {
        places.get("table", TABLE): (end.join([HEADER, *rows]) + end).encode(),
        places.get("classes", "oidv7-class-descriptions.csv"): CLASSES.encode(),
        **{places.get("masks", "masks/train/{name}").format(name=n, x=n[0].upper()): d for n, d in files.items()},
    }
    for path, data in put.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    for photo in images:
        jpeg(root / places.get("photos", "images/train") / f"{photo}.jpg")
    return root


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return partial(write_openimages, tmp_path / "oi")


def load(root: Path, **options: Any) -> tuple[dict[str, Any], dict[str, int]]:
    return load_all(root, "openimages", **options)


ONE = {mask_name(FIRST): png(shape())}
NOTHING_AMISS = {
    **{"images": 1, "objects": 1, "images without a file": 0, "images without an object": 0, "broken rows": 0},
    **{"objects of a class without a name": 0, "objects without a mask file": 0, "mask files without an object": 0},
}


@pytest.mark.parametrize(
    "places",
    [
        {},
        {"masks": "masks/{name}", "photos": "images", "classes": "class-descriptions-boxable.csv"},
        {"masks": "labels/masks/{x}/{name}"},
        {
            **{"masks": "train/labels/masks/{x}/{name}", "photos": "train/data"},
            **{"table": "train/labels/segmentations.csv", "classes": "train/metadata/classes.csv"},
        },
        {"masks": "train-masks/{name}", "photos": "train", "table": f"annotations/{TABLE}"},
    ],
)
def test_layouts(write, places):
    samples, found = load(write([row(FIRST)], ONE, **places))
    assert found == NOTHING_AMISS
    ((path, sample),) = samples.items()
    assert path == f"{places.get('photos', 'images/train')}/{FIRST}.jpg"
    assert np.array_equal(sample.frames[0].masks[0], shape())
    assert sample.objects[0].texts == ("Dog",) and sample.more == {"image_id": FIRST, "split": "train"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_masks_in_the_released_zips_are_read_in_place(write, method):
    objects = [row(FIRST), row(FIRST, "c482e8b1"), row(SECOND)]
    root = write(objects, {}, (FIRST, SECOND))
    other = {mask_name(FIRST, "c482e8b1"): png(shape(left=0.4)), mask_name(SECOND): png(shape())}
    (root / "train-masks-0.zip").write_bytes(zipped(ONE, method))
    (root / "train-masks-a.zip").write_bytes(zipped({f"inner/{name}": data for name, data in other.items()}, method))
    (root / "test-masks-a.zip").write_bytes(b"of another split")
    (root / "train-masks-b.zip").write_bytes(zipped({"README.md": b"", "a/b.JPG": b"", "._c.jpg": b""}, method))
    samples, found = load(root)
    others = {f"files with other suffixes: *{suffix}": 1 for suffix in (".md", ".jpg")}
    assert found == {**NOTHING_AMISS, "images": 2, "objects": 3, **others}
    first, second = samples.values()
    assert [np.sum(mask) for mask in first.frames[0].masks] == [shape().sum(), shape(left=0.4).sum()]
    assert np.array_equal(second.frames[0].masks[0], shape())


def test_what_is_found_does_not_depend_on_the_order_of_a_listing(write, tmp_path, monkeypatch):
    masks = {mask_name(FIRST, f"{n:08x}"): png(shape()) for n in range(4)}
    root = write([row(FIRST, f"{n:08x}") for n in range(4)], masks)
    listdir = os.listdir
    records = []
    for turned in (False, True):
        monkeypatch.setattr(os, "listdir", lambda path, turned=turned: sorted(listdir(path), reverse=turned))
        find_inputs(source_named("openimages"), root, {"split": "train"}, tmp_path / f"{turned}.sqlite")
        records.append(Records(tmp_path / f"{turned}.sqlite").parts(f"images/train/{FIRST}.jpg"))
    assert records[0] == records[1] and len(records[0]) == 8


@pytest.mark.parametrize("size", [(160, 120), (120, 90), (40, 30), (161, 120), (1600, 1201)])
def test_a_mask_keeps_its_own_size(write, size):
    (sample,) = load(write([row(FIRST)], {mask_name(FIRST): png(shape(*size))}))[0].values()
    assert sample.frames[0].masks[0].shape == size[::-1] and sample.frames[0].picture.size == (WIDTH, HEIGHT)
    assert np.asarray(sample.frames[0].masks[0]).view(np.uint8).max() == 1


def test_a_mask_of_another_shape_than_the_photo_is_left_out(write):
    root = write([row(FIRST), row(FIRST, "c482e8b1")], {**ONE, mask_name(FIRST, "c482e8b1"): png(shape(120, 160))})
    (sample,) = load(root)[0].values()
    assert [item["reason"] for item in sample.more["left_out"]] == ["mask and picture differ in shape"]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_are_drawn_on_the_stored_bitmap(write, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = write([row(FIRST)], ONE)
    jpeg(root / f"images/train/{FIRST}.jpg", exif=exif)
    (sample,) = load(root)[0].values()
    assert np.array_equal(sample.frames[0].picture, np.asarray(Image.open(root / f"images/train/{FIRST}.jpg")))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_masks_of_every_mode_are_the_same(write, mode):
    (sample,) = load(write([row(FIRST)], {mask_name(FIRST): png(shape(), mode)}))[0].values()
    assert np.array_equal(sample.frames[0].masks[0], shape())


def test_all_columns_are_kept_under_their_names(write):
    root = write([row(FIRST), row(FIRST, "c482e8b1", PredictedIoU="", Clicks="")], ONE)
    (root / "masks/train" / mask_name(FIRST, "c482e8b1")).write_bytes(png(shape()))
    (sample,) = load(root)[0].values()
    clicks = "0.95498 0.65197 1;0.89370 0.56579 0"
    assert sample.objects[0].more == {
        **{"MaskPath": mask_name(FIRST), "ImageID": FIRST, "LabelName": "/m/0bt9lr", "BoxID": "5c80344b"},
        **{"BoxXMin": 0.64375, "BoxXMax": 0.896875, "BoxYMin": 0.33645833333333336, "BoxYMax": 0.525},
        **{"PredictedIoU": 0.86864, "Clicks": clicks},
    }
    assert sample.objects[1].more["PredictedIoU"] is None and sample.objects[1].more["Clicks"] == ""
    assert sample.objects[1].id == mask_name(FIRST, "c482e8b1")[:-4]


@pytest.mark.parametrize(
    "text", [CLASSES, CLASSES.split("\n", 1)[1], "\ufeff" + CLASSES.split("\n", 1)[1], CLASSES.replace("\n", "\r\n")]
)
def test_class_names_with_and_without_a_header(write, text):
    root = write([row(FIRST, label="/m/0663v"), row(FIRST)], {**ONE, mask_name(FIRST, mid="m0663v"): png(shape())})
    (root / "oidv7-class-descriptions.csv").write_bytes(text.encode())
    (sample,) = load(root)[0].values()
    assert [item.texts for item in sample.objects] == [("Pizza, hot",), ("Dog",)]


def test_a_class_without_a_name(write):
    name = mask_name(FIRST, mid="m0zzz")
    samples, found = load(write([row(FIRST, label="/m/0zzz")], {name: png(shape())}))
    assert samples.popitem()[1].objects[0].texts == () and found["objects of a class without a name"] == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_ends_and_rows_in_any_order(write, end):
    rows = [row(FIRST), row(SECOND), row(FIRST, "c482e8b1")]
    masks = {**ONE, mask_name(SECOND): png(shape()), mask_name(FIRST, "c482e8b1"): png(shape())}
    samples, found = load(write(rows, masks, (FIRST, SECOND), end))
    assert found["objects"] == 3 and [len(sample.objects) for sample in samples.values()] == [2, 1]
    assert samples.popitem()[1].objects[0].more["Clicks"].endswith("0")


def test_rows_without_files_and_files_without_rows(write):
    rows = [row(FIRST), row(FIRST, "c482e8b1"), row(SECOND), row(SECOND, "aa")]
    spare = {mask_name(FIRST, "0000"): png(shape()), mask_name("e" * 16): png(shape())}
    samples, found = load(write(rows, {**ONE, **spare, mask_name(SECOND): png(shape())}, (FIRST, THIRD)))
    assert found == {
        **NOTHING_AMISS,
        **{"images": 2, "objects": 4, "images without a file": 1, "images without an object": 1},
        **{"objects without a mask file": 2, "mask files without an object": 2},
    }
    first, second, third = samples.values()
    assert [item["reason"] for item in first.more["left_out"]] == ["no mask file"]
    assert second.what == "no such file" and not isinstance(second, DroppedInput)
    assert isinstance(third, DroppedInput)


def test_masks_that_cannot_be_used_are_named(write):
    boxes = {
        "a1": png(np.zeros((90, 120), np.bool_)),
        "a2": png(shape())[:60],
        "a3": b"version https://git-lfs.github.com/spec/v1\noid",
        "a4": png(shape(), "RGB"),
    }
    masks = {**ONE, **{mask_name(FIRST, box): data for box, data in boxes.items()}}
    (sample,) = load(write([row(FIRST), *(row(FIRST, box) for box in boxes)], masks))[0].values()
    assert [item["reason"] for item in sample.more["left_out"]] == [
        *("empty mask", "cannot be read as a picture", "a pointer, not the file", "a mask of colours"),
    ]
    assert sample.notes["objects left out: empty mask"] == 1 and len(sample.objects) == 1


def test_paths_in_the_table_never_leave_the_root(write, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(shape()))
    jpeg(tmp_path / "secret.jpg")
    bad = [row(FIRST, "a1", MaskPath="../../../secret.png"), row(FIRST, "a2", MaskPath=f"{tmp_path}/secret.png")]
    images = [row("../../../secret"), row(f"{tmp_path}/secret")]
    samples, _ = load(write([row(FIRST), *bad, *images], ONE))
    sample = samples.pop(f"images/train/{FIRST}.jpg")
    assert [item["reason"] for item in sample.more["left_out"]] == ["path leaves the dataset"] * 2
    assert [error.what for error in samples.values()] == ["path leaves the dataset"] * 2


def test_zip_members_never_leave_their_folder(write):
    root = write([row(FIRST)], {})
    (root / "train-masks-0.zip").write_bytes(zipped({f"../{mask_name(FIRST)}": png(shape())}))
    samples, found = load(root)
    assert found["zip members that would leave their folder"] == 1 == found["objects without a mask file"]
    assert "no mask file" in samples.popitem()[1].what


def test_a_truncated_zip_ends_the_run_in_one_line(write):
    root = write([row(FIRST)], {})
    for data in (zipped(ONE)[:-9], b"", b"version https://git-lfs.github.com/spec/v1\noid"):
        (root / "train-masks-0.zip").write_bytes(data)
        with pytest.raises(UserError, match=r"train-masks-0\.zip: (not a whole zip file|a pointer, not the file)"):
            load(root)


def test_a_damaged_zip_member_is_never_a_mask(write):
    root = write([row(FIRST)], {})
    data = bytearray(zipped(ONE, zipfile.ZIP_STORED))
    data[data.index(b"IDAT") + 9] ^= 1
    (root / "train-masks-0.zip").write_bytes(data)
    (error,) = load(root)[0].values()
    assert "damaged member of an archive" in error.what


@pytest.mark.parametrize("values", [f"{mask_name(FIRST)},{FIRST},/m/0bt9lr", row(FIRST) + ",and,more", f"x,{FIRST}"])
def test_broken_rows_are_counted_and_named(write, values):
    samples, found = load(write([row(FIRST, "c482e8b1"), values], {**ONE, mask_name(FIRST, "c482e8b1"): png(shape())}))
    (sample,) = samples.values()
    assert found["broken rows"] == 1 and [item["reason"] for item in sample.more["left_out"]] == ["broken row"]


def test_a_table_that_was_cut_short_within_a_row(write):
    samples, found = load(write([row(FIRST), row(FIRST)[:30], "\0"], ONE))
    assert found["broken rows"] == 2 and found["objects"] == 3 and found["images without a file"] == 1
    lost = samples.pop("images/train/.jpg")  # rows that name no image
    assert lost.what == "no such file" and len(samples) == 1


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (TABLE, b"", "not a table of objects; met no line"),
        (TABLE, b"ImageID,Source,LabelName,Confidence\n", "not a table of objects.*MaskPath"),
        (TABLE, b"version https://git-lfs.github.com/spec/v1\noid", "a pointer, not the file"),
        (TABLE, HEADER.encode() + b'\n"' + bytes(200_000), "not a whole CSV"),
        (TABLE, HEADER.encode() + b"\n\xff\xfe\n", "not a whole CSV"),
        (TABLE, HEADER.encode() + b"\r\n", "a table without an object"),
        (TABLE, None, "no table of objects"),
        ("oidv7-class-descriptions.csv", b"/m/0bt9lr\n", "not a table of classes"),
        ("oidv7-class-descriptions.csv", None, "no class descriptions"),
    ],
)
def test_tables_that_cannot_be_read(write, file, data, message):
    root = write([row(FIRST)], ONE)
    (root / file).unlink() if data is None else (root / file).write_bytes(data)
    with pytest.raises(UserError, match=message):
        load(root)


def test_splits(write):
    root = write([row(FIRST)], ONE)
    write(
        [row(SECOND)],
        {mask_name(SECOND): png(shape())},
        (SECOND,),
        table=TABLE.replace("train", "validation"),
        masks="masks/validation/{name}",
        photos="images/validation",
    )
    assert [*load(root, split="validation")[0]] == [f"images/validation/{SECOND}.jpg"]
    assert [*load(root)[0]] == [f"images/train/{FIRST}.jpg"]
    with pytest.raises(UserError, match="met val; wanted train or validation or test"):
        load(root, split="val")


def test_from_raw_files_to_preview(write, tmp_path):
    rows = [row(FIRST), row(FIRST, "aa", "/m/0663v"), row(SECOND)]
    masks = {**ONE, mask_name(FIRST, "aa", "m0663v"): png(shape(left=0.5))}
    root = write(rows, masks, (FIRST, SECOND, THIRD))
    (root / "train-masks-0.zip").write_bytes(zipped({mask_name(SECOND): png(shape(800, 601))}))
    out = tmp_path / "shards" / "openimages"
    manifest = shard("openimages", root, out).manifest
    assert (manifest.inputs, manifest.samples, manifest.objects) == (3, 2, 3)
    assert manifest.left_out == {"no annotated object": 1} and manifest.options["found"]["objects"] == 3
    raw = Deriver(root, tmp_path)
    report = verify([out], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok, report.table()
    samples = {sample["meta"]["image_id"]: sample for sample in ShardSet(out)}
    assert samples[FIRST]["masks"].shape == (2, 1024, 1024)
    assert [item["texts"] for item in samples[FIRST]["meta"]["objects"]] == [["Dog"], ["Pizza, hot"]]
    assert samples[SECOND]["meta"]["objects"][0]["mask_sizes"] == [[601, 800]]
    assert preview(out, tmp_path / "page").exists()
    # One mask painted over, or one class renamed, is noticed.
    (root / "masks/train" / mask_name(FIRST)).write_bytes(png(shape(left=0.3)))
    assert not verify([out], derive=raw.derive, same_inputs=raw.same_inputs).ok
