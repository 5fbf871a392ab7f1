"""COCO, LVIS and RefCOCO in their own layouts, with every known fault of such files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from skimage import data as photographs

from pipeline.dataset import find_inputs
from pipeline.derive import Deriver
from pipeline.records import Records
from pipeline.request import make_request
from pipeline.run import RunSummary, run
from pipeline.sources import choices_of, source_named
from shards.errors import BadInput, DroppedInput, UserError
from shards.preview import preview
from shards.reader import ShardSet
from shards.verification import verify

WIDTH = 120
HEIGHT = 90
PHOTO = Image.fromarray(photographs.astronaut()).resize((WIDTH, HEIGHT))
SQUARE = [[20.5, 10, 70, 10, 70, 60.5, 20, 60]]
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def blob(top: int = 5, left: int = 5) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + 40, left : left + 50] = 1
    return mask


def packed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def plain(mask: np.ndarray) -> dict[str, Any]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [2]])))
    return {"size": [*mask.shape], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def annotation(number: int, image: int, segmentation: Any, category: int = 1, **more: Any) -> dict[str, Any]:
    fields = {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation}
    return {**fields, "area": 3.5, "iscrowd": 0, "bbox": [1, 2, 3, 4], **more}


def jpeg(path: Path, image: Image.Image = PHOTO, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=95, **options)


def picture(number: int, name: str | None = None) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH, "license": 3}


def write_instances(
    root: Path, images: list[Any], annotations: list[Any], name: str = "instances_train2017.json"
) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    body = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / name).write_text(json.dumps(body))
    return root


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., Path]:
    """Write `annotations/instances_train2017.json` and give back the root."""
    return partial(write_instances, tmp_path)


def load_all(root: Path, name: str = "coco", **options: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """path -> sample or the error, and what `find` counted."""
    source = source_named(name)
    choices = choices_of(source, options)
    file = root.with_name(f"{root.name}.sqlite")
    found = find_inputs(source, root, choices, file)
    out: dict[str, Any] = {}
    for item in Records(file).inputs():
        try:
            out[item.path] = source.load(root, item.path, choices, Records(file).parts(item.path))
        except BadInput as error:
            out[item.path] = error
    return out, found


def test_all_objects_of_an_image_in_all_three_encodings(write_coco):
    jpeg(write_coco([], []) / "train2017" / f"{7:012d}.jpg")
    objects = [
        annotation(1, 7, SQUARE, 18),
        annotation(2, 7, packed(blob())),
        annotation(3, 7, plain(blob(30, 60)), iscrowd=1),
    ]
    samples, found = load_all(write_coco([picture(7)], objects))
    sample = samples[f"train2017/{7:012d}.jpg"]
    assert found == {"images": 1, "images without a file": 0, "objects": 3}
    assert [(item.id, item.texts) for item in sample.objects] == [
        ("1", ("dog",)),
        ("2", ("person",)),
        ("3", ("person",)),
    ]
    assert [item.more["iscrowd"] for item in sample.objects] == [0, 0, 1]
    expected = [coco.decode(coco.merge(coco.frPyObjects(SQUARE, HEIGHT, WIDTH))), blob(), blob(30, 60)]
    assert all(
        np.array_equal(mask, expected_mask)
        for mask, expected_mask in zip(sample.frames[0].masks, expected, strict=True)
    )
    assert np.array_equal(
        sample.frames[0].picture, np.asarray(Image.open(write_coco([], []) / f"train2017/{7:012d}.jpg"))
    )


def test_unusable_objects_are_named_and_the_others_kept(write_coco):
    root = write_coco(
        [picture(7), picture(8), picture(9)],
        [
            annotation(1, 7, SQUARE),
            annotation(2, 7, [[1, 1]]),
            annotation(3, 7, {"size": [3, 4], "counts": [12]}),
            annotation(4, 7, {"size": [HEIGHT, WIDTH], "counts": "garbage\x7f"}),
            annotation(5, 8, [[]]),
            annotation(6, 77, SQUARE),
        ],
    )
    for number in (7, 8, 9):
        jpeg(root / "train2017" / f"{number:012d}.jpg")
    samples, found = load_all(root)
    assert found["objects of no listed image"] == 1
    seven, eight, nine = samples.values()
    assert [item.id for item in seven.objects] == ["1"]
    assert [(item["id"], item["reason"]) for item in seven.more["left_out"]] == [
        ("2", "empty mask"),
        ("3", "mask and picture differ in size"),
        ("4", "broken run lengths"),
    ]
    assert seven.notes["objects left out: empty mask"] == 1
    assert "no object that can be used" in str(eight) and not isinstance(eight, DroppedInput)
    assert isinstance(nine, DroppedInput)  # nothing is wrong with a picture that shows nothing annotated


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_are_drawn_on_the_stored_bitmap(write_coco, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = write_coco([picture(7)], [annotation(1, 7, SQUARE)])
    jpeg(root / "train2017" / f"{7:012d}.jpg", exif=exif)
    (sample,) = load_all(root)[0].values()
    stored = np.asarray(Image.open(root / "train2017" / f"{7:012d}.jpg"))
    assert np.array_equal(sample.frames[0].picture, stored)


def test_annotations_made_on_the_upright_picture_turn_it(write_coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write_coco([picture(7)], [annotation(1, 7, SQUARE)])
    jpeg(root / "train2017" / f"{7:012d}.jpg", PHOTO.transpose(Image.Transpose.ROTATE_90), exif=exif)
    (sample,) = load_all(root)[0].values()
    assert sample.frames[0].picture.size == (WIDTH, HEIGHT)
    assert np.abs(np.asarray(sample.frames[0].picture).astype(int) - np.asarray(PHOTO)).mean() < 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "cannot be read as a picture"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
            "a pointer, not the file",
        ),
        (lambda path: jpeg(path, PHOTO.resize((WIDTH, HEIGHT + 1))), "picture and annotation differ in size"),
    ],
)
def test_pictures_that_cannot_be_used_go_to_the_ledger(write_coco, change, message):
    root = write_coco([picture(7)], [annotation(1, 7, SQUARE)])
    path = root / "train2017" / f"{7:012d}.jpg"
    jpeg(path)
    change(path)
    (error,) = load_all(root)[0].values()
    assert isinstance(error, BadInput) and message in str(error)


def test_grey_and_cmyk_pictures_become_rgb(write_coco):
    root = write_coco([picture(7), picture(8)], [annotation(1, 7, SQUARE), annotation(2, 8, SQUARE)])
    jpeg(root / "train2017" / f"{7:012d}.jpg", PHOTO.convert("L"))
    jpeg(root / "train2017" / f"{8:012d}.jpg", PHOTO.convert("CMYK"))
    for sample in load_all(root)[0].values():
        assert sample.frames[0].picture.size == (WIDTH, HEIGHT)


def test_lvis_names_its_images_by_their_url(write_coco):
    image = {
        "id": 7,
        "coco_url": f"http://images.cocodataset.org/train2017/{7:012d}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
    }
    root = write_coco([image], [annotation(1, 7, SQUARE)], "lvis_v1_train.json")
    jpeg(root / "train2017" / f"{7:012d}.jpg")
    samples, _ = load_all(root, "lvis")
    assert [*samples] == [f"train2017/{7:012d}.jpg"] and samples.popitem()[1].objects[0].texts == ("person",)


def test_image_paths_do_not_leave_the_root(write_coco):
    root = write_coco([picture(7, "../../etc/passwd"), picture(8, "/etc/passwd")], [annotation(1, 7, SQUARE)])
    samples, found = load_all(root)
    assert found["images without a file"] == 2
    assert all(isinstance(error, BadInput) for error in samples.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"images": [{"id": 1', "not whole JSON"), ("", "not whole JSON"), (None, "annotation file")],
)
def test_annotation_files_that_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "instances_train2017.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_all(tmp_path)


def test_records_that_are_malformed_are_counted_and_the_others_kept(write_coco):
    no_size = {"id": 8, "file_name": f"{8:012d}.jpg"}
    images = [picture(7), 5, {"file_name": "x.jpg"}, {"id": [7]}, picture(7), picture(70, f"{7:012d}.jpg"), no_size]
    objects = [
        *(annotation(1, 7, SQUARE), annotation(2, "7", SQUARE), annotation(3, 70, SQUARE), annotation(4, 8, SQUARE)),
        *(annotation(5, 7, SQUARE, category=[1]), annotation(6, {}, SQUARE), 5, {"image_id": 7}),
    ]
    root = write_coco(images, objects)
    body = json.loads((root / "annotations/instances_train2017.json").read_text())
    body["categories"] += [None, {"id": 3}, {"name": "cat"}, {"id": [1], "name": "dog"}, {"id": 1, "name": 5}]
    (root / "annotations/instances_train2017.json").write_text(json.dumps(body))
    for number in (7, 8):
        jpeg(root / "train2017" / f"{number:012d}.jpg")
    samples, found = load_all(root)
    seven, eight = samples.values()
    assert [(item.id, item.texts) for item in seven.objects] == [
        *(("1", ("person",)), ("2", ("person",)), ("3", ("person",)), ("5", ()))  # ids may be texts or numbers
    ]
    assert "image without its size; met height None, width None; wanted" in str(eight)
    assert {name: count for name, count in found.items() if count} == {
        **{"images": 2, "images of another shape": 3, "images listed twice": 2, "objects": 5},
        **{"objects of another shape": 2, "objects of no listed image": 1, "objects of a category without a name": 1},
        "categories without an id or a name": 5,
    }


@pytest.mark.parametrize("split", ["*", "train20*", "[t]rain2017", "../annotations/instances_train2017", "nope"])
def test_a_split_is_a_name_and_no_pattern(write_coco, split):
    with pytest.raises(UserError, match=r"annotation file; met instances_train2017\.json; wanted one .*--split"):
        load_all(write_coco([], []), split=split)


def test_several_annotation_files_are_an_error(write_coco):
    root = write_coco([], [])
    write_coco([], [], "instances_train2014.json")
    with pytest.raises(UserError, match=r"instances_train2014.json, instances_train2017.json.*--split"):
        load_all(root)
    load_all(root, split="train2017")


def ref(number: int, ann: int, image: int, sentences: list[str], split: str = "train") -> dict[str, Any]:
    described = [
        {"sent_id": 10 * number + i, "raw": text, "sent": text.lower(), "tokens": text.split()}
        for i, text in enumerate(sentences)
    ]
    return {
        **{
            "ref_id": number,
            "ann_id": ann,
            "image_id": image,
            "category_id": 1,
            "split": split,
            "sentences": described,
        },
        "file_name": f"COCO_train2014_{image:012d}_{ann}.jpg",
        "sent_ids": [s["sent_id"] for s in described],
    }


def write_refer(root: Path, name: str = "refcoco+", split_by: str = "unc") -> Path:
    """refer's own layout, with a pickle of Python 2's protocol."""
    folder = root / name
    folder.mkdir(parents=True)
    images = [picture(n, f"COCO_train2014_{n:012d}.jpg") for n in (7, 8, 9)]
    objects = [
        annotation(1, 7, SQUARE),
        annotation(2, 7, plain(blob()), 18),
        annotation(3, 8, SQUARE),
        annotation(9, 9, SQUARE),
    ]
    body = {"images": images, "annotations": objects, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(body))
    refs = [
        ref(1, 1, 7, ["The LEFT woman.", "astronaut"]),
        ref(2, 1, 7, ["lady in orange"]),
        ref(3, 2, 7, [""]),
        ref(4, 3, 8, ["caf\u00e9"], "testA"),
        ref(5, 66, 8, ["gone"]),
    ]
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=0))
    for number in (7, 8):
        jpeg(root / "images/mscoco/images/train2014" / f"COCO_train2014_{number:012d}.jpg")
    return root


@pytest.fixture
def refer_root(tmp_path: Path) -> Path:
    return write_refer(tmp_path)


def test_all_refs_and_all_sentences_of_an_object_are_kept(refer_root):
    samples, found = load_all(refer_root, "refcoco+")
    assert found == {
        **{"images": 2, "images without a file": 0, "objects": 2, "refs": 3, "sentences": 4},
        "refs without an annotation or image": 1,
    }
    seven, eight = samples.values()
    assert [(item.id, item.texts) for item in seven.objects] == [
        ("1", ("The LEFT woman.", "astronaut", "lady in orange")),
        ("2", ("",)),
    ]
    assert [r["ref_id"] for r in seven.objects[0].more["refs"]] == [1, 2]
    assert seven.objects[1].more["category"] == "dog" and seven.more["split"] == "train"
    assert isinstance(eight, DroppedInput)  # its only ref of this split has lost its annotation


def test_other_splits_and_all_of_them(refer_root):
    (eight,) = load_all(refer_root, "refcoco+", split="testA")[0].values()
    assert eight.objects[0].texts == ("caf\u00e9",)
    assert load_all(refer_root, "refcoco+", split="all")[1]["refs"] == 4
    with pytest.raises(UserError, match=r"no ref of this split; met testA, train; wanted val"):
        load_all(refer_root, "refcoco+", split="val")
    with pytest.raises(UserError, match=r"refs\(google\)\.p: no such file; met refs\(unc\)\.p; .*--split-by"):
        load_all(refer_root, "refcoco+", split_by="google")


def test_texts_of_python_2_that_are_no_ascii(refer_root):
    file = refer_root / "refcoco+" / "refs(unc).p"
    # What Python 2 wrote for the str 'caf\xe9': a byte string in protocol 0.
    data = pickle.dumps([ref(4, 3, 8, ["PLACE"])], protocol=0).replace(b"VPLACE\n", b"S'caf\\xe9'\n")
    file.write_bytes(data)
    (eight,) = load_all(refer_root, "refcoco+")[0].values()
    assert eight.objects[0].texts == ("caf\u00e9",)


class Trap:
    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([Trap()]), "a pickle of more than plain data; met .*open"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", "a pickle of more than plain data; met os.system"),
        (pickle.dumps([{"a": 1}])[:-3], "not whole|not a whole pickle"),
        (pickle.dumps([{"a": 1}]), "not refer's pickle"),
        (pickle.dumps(7), "not refer's pickle"),
        (
            pickle.dumps([ref(1, 1, 7, ["x"]) | {"ann_id": [1]}]),
            "ref 1: not refer's pickle; met ann_id '.1.', which is neither",
        ),
        (pickle.dumps([ref(1, 1, 7, ["x"]) | {"sentences": [{"sent_id": 1, "raw": 5, "sent": ""}]}]), "not refer's"),
        (b"c__builtin__\nbytearray\n(I9000000000000\ntR.", "a pickle of more than plain data; met a bytearray"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer, not the file"),
    ],
)
def test_pickles_run_nothing(refer_root, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (refer_root / "refcoco+" / "refs(unc).p").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_all(refer_root, "refcoco+")
    assert not (tmp_path / "ran").exists()


def test_options_of_other_sources_are_refused():
    with pytest.raises(
        UserError, match=r"refcoco: not an option of this source; met --frames; wanted --split, --split-by"
    ):
        choices_of(source_named("refcoco"), {"frames": 5})


def shard(source: str, root: Path, folder: Path, **options: Any) -> RunSummary:
    return run(make_request(source, root, shard_bytes=10**7, **options), folder, workers=1, max_bad=1.0)


def test_from_raw_files_to_preview(refer_root, tmp_path):
    out = tmp_path / "shards" / "refcoco+"
    manifest = shard("refcoco+", refer_root, out).manifest
    assert (manifest.inputs, manifest.samples, sum(manifest.left_out.values()), manifest.objects) == (2, 1, 1, 2)
    assert manifest.options["found"]["sentences"] == 4
    raw = Deriver(refer_root, tmp_path)
    report = verify([out], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok, report.table()
    (sample,) = ShardSet(out)
    assert sample["masks"].shape == (2, 1024, 1024) and sample["meta"]["objects"][0]["texts"][0] == "The LEFT woman."
    assert preview(out, tmp_path / "page").exists()
    # One sentence changed in the pickle is another plan.
    file = refer_root / "refcoco+" / "refs(unc).p"
    file.write_bytes(file.read_bytes().replace(b"orange", b"yellow"))
    assert not verify([out], derive=raw.derive, same_inputs=raw.same_inputs).ok
