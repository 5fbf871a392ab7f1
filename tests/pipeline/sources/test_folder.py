"""A user's own data, in all forms, with the usual mistakes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from pipeline.dataset import find_inputs
from pipeline.derive import Deriver
from pipeline.fit import check_size
from pipeline.formats import RENAMED, make_sample
from pipeline.raw import RawFrame, RawObject, RawSample
from pipeline.records import Records
from pipeline.request import make_request
from pipeline.run import run
from pipeline.sources import source_named
from shards.archive import encode_sample
from shards.errors import BadInput, DroppedInput, UserError
from shards.manifest import read_ledger
from shards.meta import parse_meta
from shards.recipe import named_recipe
from shards.verification import verify
from tests.pipeline.built import through

HEIGHT = 60
WIDTH = 80
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[10:50, 20:70] = 255
FOLDER = source_named("folder")


def write_pictures(root: Path) -> Path:
    photo = Image.fromarray(photographs.coffee()).resize((WIDTH, HEIGHT))
    for name in ("a.jpg", "b.png"):
        photo.save(root / name)
    Image.fromarray(MASK).save(root / "m.png")
    ids = Image.fromarray((MASK > 0).astype(np.uint8) * 7).convert("P")
    ids.putdata(((MASK > 0) * 7).ravel().tolist())
    ids.save(root / "ids.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path)


def write(root: Path, *lines: Any) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "samples.jsonl").write_text("\n".join(text) + "\n")


def load_all(root: Path) -> dict[str, Any]:
    file = root / "records.sqlite"
    out = {}
    find_inputs(FOLDER, root, {}, file)
    for item in Records(file).inputs():
        try:
            out[item.path] = FOLDER.load(root, item.path, {}, Records(file).parts(item.path))
        except BadInput as error:
            out[item.path] = error
    return out


def test_lines_with_every_form_of_mask(root):
    objects = [
        {"id": "png", "mask": "m.png", "texts": ["The cup.", "a cup"], "colour": "red"},
        {"mask": "ids.png", "value": 7},
        {"mask": [[20, 10, 70, 10, 70, 50, 20, 50]]},
        {"mask": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}},
    ]
    write(root, {"image": "a.jpg", "objects": objects, "licence": "mine"})
    (sample,) = load_all(root).values()
    assert [item.id for item in sample.objects] == ["png", "1", "2", "3"]
    assert sample.objects[0].texts == ("The cup.", "a cup") and sample.objects[0].more == {"colour": "red"}
    assert sample.more["source_json"] == {"licence": "mine"}
    for mask in sample.frames[0].masks[:3]:
        assert np.array_equal(mask, MASK > 0)
    assert np.asarray(sample.frames[0].masks[3]).all()


def test_frames_and_an_object_that_leaves(root):
    write(root, {"frames": ["a.jpg", "b.png"], "objects": [{"masks": ["m.png", None]}]})
    (sample,) = load_all(root).values()
    assert [mask.any() for frame in sample.frames for mask in frame.masks] == [True, False]


def test_images_and_masks_in_two_folders(root):
    for place in ("images/x", "masks/x/two"):
        (root / place).mkdir(parents=True)
    for name in ("one", "two", "three"):
        (root / "a.jpg").rename(root / "images/x" / f"{name}.jpg") if name == "one" else Image.open(
            root / "b.png"
        ).save(root / "images/x" / f"{name}.jpg")
    both = MASK // 255 * 3
    both[:5] = 200
    Image.fromarray(both).save(root / "masks/x/one.png")
    Image.fromarray(MASK).save(root / "masks/x/two/cup.png")
    samples = load_all(root)
    one, three, two = samples.values()
    assert [item.id for item in one.objects] == ["3", "200"] and [item.id for item in two.objects] == ["cup"]
    assert np.array_equal(one.frames[0].masks[0], MASK > 0) and "no annotated object" in str(three)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a sample"),
        ("[1]", "not a sample"),
        ({"objects": []}, "not a sample"),
        ({"image": "none.jpg", "objects": []}, "no such file"),
        ({"image": "../a.jpg", "objects": []}, "path leaves the dataset"),
        ({"image": "/etc/passwd", "objects": []}, "path leaves the dataset"),
        ({"image": "a.jpg"}, "no annotated object"),
        ({"image": "a.jpg", "objects": {}}, "no list of objects"),
        ({"image": "a.jpg", "objects": [{"mask": "../m.png"}]}, "path leaves the dataset"),
        ({"image": "a.jpg", "objects": [{"masks": ["m.png", "m.png"]}]}, "masks of an object"),
        ({"image": "a.jpg", "objects": [{"mask": "m.png", "texts": "one"}]}, "texts of an object"),
        ({"image": "a.jpg", "objects": [{"mask": {"size": [3, 3], "counts": [9]}}]}, "differ in size"),
    ],
)
def test_broken_lines_are_bad_inputs_with_a_reason(root, line, message):
    write(root, line)
    (error,) = load_all(root).values()
    assert isinstance(error, BadInput) and message in str(error)


def test_lines_with_one_picture_need_ids(root):
    line = {"image": "a.jpg", "objects": [{"mask": "m.png"}]}
    write(root, line, line)
    (error,) = load_all(root).values()
    assert "described more than once; met 2 lines" in str(error)
    write(root, {**line, "id": 1}, {**line, "id": 2})
    assert [*load_all(root)] == ["a.jpg#1", "a.jpg#2"]


def test_texts_and_names_that_no_file_can_have_stop_nothing(root):
    half = "half a pair: \ud800"
    objects = [{"mask": "m.png", "texts": [half, "caf\u00e9 \U0001f600"]}]
    long = "x" * 300 + ".jpg"
    write(root, {"image": "a.jpg", "objects": objects}, {"image": "\ud800.jpg"}, {"image": long}, "[" * 99999)
    summary, samples = through("folder", root, root / "out", max_bad=1)
    assert summary.manifest.left_out == {"not a file name": 2, "not a sample": 1}
    assert samples["a.jpg"]["objects"][0]["texts"] == [half, "caf\u00e9 \U0001f600"]
    assert {line.path for line in read_ledger(root / "out/folder")} == {"\\ud800.jpg", long, "samples.jsonl#line-4"}


def test_a_pointer_instead_of_the_lines(root):
    (root / "samples.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"samples\.jsonl: a pointer, not the file"):
        load_all(root)


def test_a_folder_of_another_kind(tmp_path):
    with pytest.raises(
        UserError, match=r"not a folder of this kind; wanted samples.jsonl, or annotations.json, or images/ and"
    ):
        load_all(tmp_path)


def test_from_raw_to_verified(root):
    pair = {"frames": ["a.jpg", "b.png"], "objects": [{"masks": ["m.png", "ids.png"], "texts": ["cup"]}], "id": "p"}
    write(root, pair, {"image": "b.png", "objects": [{"mask": "m.png"}, {"mask": "ids.png", "value": 7}]}, "broken")
    out = root / "shards" / "folder"
    done = run(make_request("folder", root, recipe="sa2va", shard_bytes=10**7), out, 1, 1.0)
    assert (done.manifest.inputs, done.manifest.samples, done.manifest.objects) == (3, 2, 3)
    raw = Deriver(root, root)
    report = verify([out], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok, report.table()


def test_lines_as_windows_and_packers_leave_them(root):
    lines = [json.dumps({"image": name, "objects": [{"mask": "m.png"}]}).encode() for name in ("a.jpg", "b.png")]
    text = b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n"
    for data in (text, gzip.compress(text)):
        (root / "samples.jsonl").write_bytes(data)
        assert [len(sample.objects) for sample in load_all(root).values()] == [1, 1]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_list_is_not_json_lines(root, indent):
    (root / "samples.jsonl").write_text(json.dumps([{"image": "a.jpg", "objects": []}], indent=indent))
    with pytest.raises(UserError, match=r"samples\.jsonl: not JSON Lines; met .* in line 1; wanted one sample a line"):
        load_all(root)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"image": "a.jpg", "weight": NaN}', "NaN at byte 29"),
        ('{"image": "a.jpg", "weight": 1e999}', "1e999 at byte"),
        ('{"image": "a.jpg"', "its end at byte 17"),
        ("[" * 300, "more than 200 levels"),
        ('{"picture": "a.jpg"}', "KeyError 'frames'"),
    ],
)
def test_a_broken_line_is_reported_with_its_fault(root, line, value):
    write(root, line, {"image": "b.png", "objects": [{"mask": "m.png"}]})
    samples = load_all(root)
    assert value in samples["samples.jsonl#line-1"].met and len(samples["b.png"].objects) == 1


IDS = (MASK > 0).astype(np.uint8)
IDS[55:, :30] = 2


def put_beside(root: Path, name: str, mask: Image.Image | bytes | None, at: str = "masks/{}.png") -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.open(root / "a.jpg").save(root / f"images/{name}.jpg")
    if isinstance(mask, bytes):
        (root / at.format(name)).write_bytes(mask)
    elif mask is not None:
        mask.save(root / at.format(name), **({"quality": 90} if at.endswith("jpg") else {}))


def found_beside(root: Path) -> dict[str, Any]:
    return {Path(path).stem: item for path, item in load_all(root).items()}


def test_ids_of_every_kind_become_objects(root):
    grey = Image.fromarray(IDS)
    deep = Image.fromarray(IDS.astype(np.uint16) * 300)
    kinds = {
        "deep": (deep, "masks/{}.png"),
        "tiff": (Image.fromarray(IDS.astype(np.int32)), "masks/{}.tif"),
        "rgb": (Image.merge("RGB", [grey] * 3), "masks/{}.png"),
        "upper": (grey, "masks/{}.PNG"),
        "ended": (grey, "masks/{}_mask.png"),
        "doubled": (grey, "masks/{}.jpg.png"),
        "beside": (grey, "images/{}_mask.png"),
        "lossy": (Image.fromarray(MASK), "masks/{}.jpg"),
    }
    for name, (mask, at) in kinds.items():
        put_beside(root, name, mask, at)
    samples = found_beside(root)
    assert samples.keys() == kinds.keys()
    for name, sample in samples.items():
        expected = {"deep": ["300", "600"], "lossy": ["255"]}.get(name, ["1", "2"])
        assert [item.id for item in sample.objects] == expected, name
        if name != "lossy":
            for number, mask in enumerate(sample.frames[0].masks, 1):
                assert np.array_equal(mask, number == IDS), name
    assert np.mean(np.asarray(samples["lossy"].frames[0].masks[0]) == (MASK > 0)) > 0.95


def test_what_is_no_mask_is_bad_and_what_has_none_is_not(root):
    grey = Image.fromarray(IDS)
    colours = Image.merge("RGB", [grey, grey.point(lambda v: v * 9), grey])
    kinds = {
        "colours": (colours, "a mask of colours"),
        "broken": (b"\x89PNG nothing", "cannot be read as a picture"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer, not the file"),
        "alpha": (Image.merge("LA", [grey, grey]), "a mask whose alpha differs"),
        "small": (grey.resize((9, 9)), "mask and picture differ in size"),
    }
    for name, (mask, _) in kinds.items():
        put_beside(root, name, mask)
    put_beside(root, "blurred", grey.point(lambda v: v * 90), "masks/{}.jpg")
    others = (("array", "masks/{}.npy"), ("outline", "masks/{}_mask.json"), ("packed", "masks/{}/1.npz"))
    for name, at in others:
        (root / "masks/packed").mkdir(exist_ok=True)
        put_beside(root, name, b"...", at)
        kinds[name] = (b"", "a mask file of a kind that is not taken")
    (root / "masks/empty").mkdir()
    put_beside(root, "empty", None)
    put_beside(root, "none", None)
    put_beside(root, "black", Image.new("L", grey.size))
    samples = found_beside(root)
    for name, (_, message) in {**kinds, "blurred": (None, "stored with losses")}.items():
        assert message in samples[name].what and not isinstance(samples[name], DroppedInput), name
        assert samples[name].met and samples[name].wanted, name
    assert samples["packed"].met == "masks/packed/1.npz" and samples["array"].met == "masks/array.npy"
    for name, value in (
        ("none", "a picture alone"),
        ("empty", "a picture alone"),
        ("black", "masks/black.png: the background alone"),
    ):
        assert isinstance(samples[name], DroppedInput) and samples[name].met == value


def test_masks_of_no_picture_are_counted(root):
    put_beside(root, "one", Image.fromarray(IDS))
    put_beside(root, "two", None)
    for name in ("twoo.png", "other.npy", "one.jpg"):
        Image.fromarray(MASK).save(root / "masks" / name, "PNG")
    found = find_inputs(FOLDER, root, {"void": None, "mask_slack": 0}, root / "records.sqlite")
    assert found["images"] == 2 and found["images without a mask"] == 1
    assert found["mask files without an image"] == 2
    assert found["files of a kind that is not taken: *.npy"] == 1


def test_pixels_of_no_object_and_grey_edges(root):
    edged = IDS.copy()
    edged[0] = 255
    put_beside(root, "edged", Image.fromarray(edged))
    soft = np.where(IDS == 1, 255, np.arange(WIDTH)).astype(np.uint8) * (IDS > 0)
    soft[30:32, 1:18] = np.arange(1, 35).reshape(2, 17)
    put_beside(root, "soft", Image.fromarray(soft))
    samples = found_beside(root)
    assert [item.id for item in samples["edged"].objects] == ["1", "2", "255"] and not samples["edged"].notes
    assert samples["soft"].notes == {"masks whose ids look like grey edges, not like objects": 1}
    parts = Records(root / "records.sqlite").parts("images/edged.jpg")
    sample = FOLDER.load(root, "images/edged.jpg", {"void": 255, "mask_slack": 0}, parts)
    assert [item.id for item in sample.objects] == ["1", "2"]
    assert sample.notes == {"masks with pixels of no object beside the background (void)": 1}


def test_mask_slack_takes_masks_of_nearly_the_pictures_size(root):
    narrow = Image.fromarray(MASK[:, : WIDTH - 1])
    narrow.save(root / "m.png")
    write(root, {"image": "a.jpg", "objects": [{"mask": "m.png"}]})
    (error,) = load_all(root).values()
    assert "mask and picture differ in size" in str(error)
    parts = Records(root / "records.sqlite").parts("a.jpg")
    sample = FOLDER.load(root, "a.jpg", {"void": None, "mask_slack": 1}, parts)
    assert sample.notes == {"masks of another size than their picture, within --mask-slack": 1}
    assert np.array_equal(sample.frames[0].masks[0], np.asarray(narrow) > 0)
    with pytest.raises(BadInput, match="59 x 80; wanted 60 x 80; --mask-slack 1 takes masks"):
        check_size((59, 80), (60, 80), 0)
    with pytest.raises(BadInput, match=r"met 50 x 80; wanted 60 x 80$"):
        check_size((50, 80), (60, 80), 9)


@pytest.mark.parametrize("name", [r"x\a.JPG", "./x//a.jpg", "/home/me/set/x/a.jpg", r"D:\set\x\A.jpeg", "x/%61.jpg"])
def test_names_of_another_machine(root, name):
    (root / "x").mkdir()
    (root / "a.jpg").rename(root / "x/a.jpg")
    (root / "m.png").rename(root / "x/a.png")
    mask = name.replace("jpeg", "png").replace("jpg", "png").replace("JPG", "PNG")
    write(root, {"image": name, "objects": [{"mask": mask}]})
    (sample,) = load_all(root).values()
    assert np.array_equal(sample.frames[0].masks[0], MASK > 0)
    (item,) = Records(root / "records.sqlite").inputs()
    assert item.bytes == (root / "x/a.jpg").stat().st_size


def test_a_picture_is_not_taken_for_its_mask(root):
    (root / "a.jpg").rename(root / "m.jpg")
    write(root, {"image": "m.jpg", "objects": [{"mask": "/else/m.jpg"}, {"mask": "../m.jpg"}, {"mask": "none/m.jpg"}]})
    (error,) = load_all(root).values()
    assert "no object that can be used" in str(error)


def test_a_missing_picture_is_reported_with_the_nearest_name(root):
    write(root, {"image": "b.jpg", "objects": [{"mask": "m.png"}]})
    (error,) = load_all(root).values()
    assert "no such file; met no 'b.jpg' in .; the nearest name is 'b.png'" in str(error)


def test_one_mask_of_two_pictures_is_bad_for_both(root):
    put_beside(root, "x", Image.fromarray(IDS))
    put_beside(root, "y", Image.fromarray(IDS))
    Image.open(root / "b.png").save(root / "images/x.png")
    samples = load_all(root)
    assert len(samples["images/y.jpg"].objects) == 2
    for path in ("images/x.jpg", "images/x.png"):
        assert "one mask for two pictures; met images/x.jpg and images/x.png -> masks/x.png" in str(samples[path])


@pytest.mark.parametrize(
    ("picture", "mask"), [("\u00e9", "e\u0301"), ("Photo", "photo"), ("a b", "a%20b"), ("IMG_1", "img_1_mask")]
)
def test_masks_are_found_by_alike_names(root, picture, mask):
    put_beside(root, picture, Image.fromarray(IDS), f"masks/{mask}.png")
    (sample,) = load_all(root).values()
    assert len(sample.objects) == 2


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"mask": "ids.png", "value": 3}, "no pixel of the object's value; met values 0, 7; wanted 3"),
        ({"mask": "ids.png", "value": "seven"}, "an object's value; met 'seven'; wanted a whole number"),
        ({"mask": "ids.png", "value": [7]}, "an object's value; met [7]; wanted a whole number"),
        ({"mask": []}, "no mask; met an empty list of polygons, as of a box alone; wanted polygons"),
    ],
)
def test_a_value_that_its_mask_does_not_have(root, item, expected):
    write(root, {"image": "a.jpg", "objects": [{"mask": "m.png"}, item]})
    (sample,) = load_all(root).values()
    message = str(sample)
    if not isinstance(sample, BadInput):
        (fault,) = sample.more["left_out"]
        message = f"{fault['reason']}; {fault['detail']}"
    assert expected in message


def test_an_object_may_be_absent_from_a_frame_and_its_value_may_be_a_text(root):
    objects = [{"masks": ["ids.png", "m.png"], "value": "7"}, {"masks": ["ids.png", []], "value": 7.0}]
    write(root, {"frames": ["a.jpg", "b.png"], "objects": objects})
    (sample,) = load_all(root).values()
    assert [[mask.any() for mask in frame.masks] for frame in sample.frames] == [[True, True], [False, False]]


def test_what_a_sample_cannot_hold_goes_to_the_ledger(root):
    """All that is written is read: `through` verifies the set, against the raw files too."""
    item = {"mask": "m.png"}
    many = {"frames": ["a.jpg"] * 100, "objects": [{"masks": ["m.png"] * 100}]}
    nested: list[Any] = []
    for _ in range(70):
        nested = [nested]
    write(
        root,
        {"image": "a.jpg", "objects": [item], "id": "sound"},
        {**many, "id": "100 frames"},
        {"image": "a.jpg", "objects": [{**item, "number": 1 << 70}], "id": "70 bits"},
        {"image": "a.jpg", "objects": [item], "id": "deep", "more": nested},
    )
    summary, samples = through("folder", root, root / "out", max_bad=1)
    assert {path.partition("#")[2] for path in samples} == {"sound"}
    ledger = {line.path.partition("#")[2]: line for line in read_ledger(root / "out/folder")}
    assert ledger["100 frames"].reason == "too many frames"
    assert ledger["100 frames"].detail.startswith("met 100; wanted at most 99")
    assert ledger["70 bits"].reason == "number that few JSON parsers hold"
    assert {"deep"} < ledger.keys() and all(line.bad for line in ledger.values()) and summary.manifest.inputs == 4


def test_more_objects_than_a_sample_may_have():
    """Make the objects from nothing: to decode so many masks is not what is tested."""
    frame = RawFrame("a", Image.new("RGB", (2, 2)), [np.ones((2, 2), np.bool_)] * 4097)
    raw = RawSample("a.jpg", "folder", (frame,), tuple(RawObject(str(n)) for n in range(4097)))
    with pytest.raises(UserError, match="too many objects; met 4097; wanted at most 4096"):
        make_sample(raw, named_recipe("default"))


def test_a_users_keys_do_not_replace_keys_of_the_format(root):
    keys = {"filled": "x", "mask_sizes": [[1, 1]], "source_keys": 1, "crc32": 5, "colour": "red"}
    top = {"crc32": 1, "psnr": 2, "left_out": 3, "source": "me", "path": "/", "has_paired_frame": True, "filled": 4}
    write(root, {"image": "a.jpg", "objects": [{"mask": "m.png", **keys}], **top})
    summary, samples = through("folder", root, root / "out")
    (meta,) = samples.values()
    (item,) = meta["objects"]
    assert item["filled"] == [0] and "mask_sizes" not in item
    assert item["crc32"] == 5 and item["colour"] == "red"
    assert item["source_keys"] == {"filled": "x", "mask_sizes": [[1, 1]], "source_keys": 1}
    assert meta["source"] == "folder" and meta["path"] == "a.jpg" and not meta["has_paired_frame"]
    assert meta["source_json"] == top and summary.manifest.notes[RENAMED] == 3


def test_a_sources_keys_do_not_replace_keys_of_the_format():
    frame = RawFrame("a", Image.new("RGB", (4, 4)), [np.ones((4, 4), np.bool_)])
    more = {"psnr": {}, "crc32": 1, "frames": [], "objects": 5, "source": "x", "captions": ["c"], "left_out": []}
    raw = RawSample("a.jpg", "folder", (frame,), (RawObject("0"),), more)
    sample, notes = make_sample(raw, named_recipe("default"))
    assert sample.meta["source"] == "folder" and len(sample.meta["objects"]) == 1
    assert sample.meta["source_keys"] == {name: more[name] for name in ("psnr", "crc32", "frames", "objects", "source")}
    assert sample.meta["captions"] == ["c"] and sample.meta["left_out"] == [] and notes[RENAMED] == 5
    assert parse_meta(encode_sample(sample)[0][1])["crc32"].keys() >= {"masks"}
