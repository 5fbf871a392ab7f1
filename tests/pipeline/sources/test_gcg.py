"""Grounded captions: phrases keep their words, their places and their masks, in all four files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import captions
from pipeline.captions import find_phrase, locate_phrase, shift_span, strip_quotes
from pipeline.finder import OUTSIDE
from pipeline.regions import LEFT_OUT
from pipeline.sources.gcg import BARE, IGNORED, NO_SPAN, SHORT
from shards.errors import BadInput, UserError
from tests.pipeline.built import HEIGHT, SQUARE, WIDTH, Found, box, jpeg, put, rle, through

NAME = "000000000009.jpg"
CAPTION = "A cat sits on a red cat bed."
FIRST = box(5, 5, 45, 60)
SECOND = box(30, 40, 90, 120)
THIRD = box(50, 3, 80, 33)
GRAND = "GranDf_HA_GCG"
PSG = "OpenPsgGCG"
REF = "RefCOCOg_GCG"
FLICKR = "flickr_mergedGT_GCG"
PLACES = {
    GRAND: "images/grandf/train",
    PSG: "images/coco2017/train2017",
    REF: "images/coco2014/train2014",
    FLICKR: "images/flickr30k/Flickr30K",
}


def grounding(*masks, at=None):
    return {"token_positives": at, "rle_masks": [rle(mask) for mask in masks]}


def grand(groundings=None, caption=CAPTION, **more):
    entries = {"A cat": grounding(FIRST, at=[0, 5])} if groundings is None else groundings
    return {"file_name": NAME, "caption": caption, "groundings": entries, **more}


def refcocog(*refs, caption=CAPTION):
    listed = [{"sentence": words, "segmentation": shape, "bbox": [1, 2, 3, 4]} for words, shape in refs]
    return {"9": {"img_file_name": f"COCO_train2014_{NAME}", "caption": caption, "refs": listed}}


def flickr(*entries):
    """(caption, [(spans, mask), ...]) each: the same photo once a caption."""
    images = []
    annotations = []
    for number, (caption, regions) in enumerate(entries):
        images.append({"id": number, "file_name": NAME, "height": HEIGHT, "width": WIDTH, "caption": caption})
        for spans, mask, *more in regions:
            fields = {"id": len(annotations), "image_id": number, "bbox": [1, 2, 3, 4], "tokens_positive": spans}
            annotations.append({**fields, "sam_mask": rle(mask), **(more[0] if more else {})})
    return {
        "annotations": annotations,
        "images": images,
    }  # the regions first: their captions must be known all the same


def write(root: Path, kind: str, content, split="train", name=NAME, picture=None) -> Path:
    put(root / f"annotations/{kind}_{split}.json", content)
    put(root / PLACES[kind] / name, picture or jpeg())
    return root


def load(tmp_path: Path, kind: str, content, **more):
    return Found("gcg", write(tmp_path / "raw", kind, content, **more), tmp_path).load()


def phrase_masks(sample, n=0):
    """Words -> the union of the masks of their objects."""
    masks = dict(zip([one.id for one in sample.objects], sample.frames[0].masks, strict=True))
    caption = sample.more["captions"][n]
    for phrase in caption["phrases"]:
        if phrase["start"] is not None:
            assert caption["text"][phrase["start"] : phrase["end"]] == phrase["text"]
    return {p["text"]: np.logical_or.reduce([masks[name] for name in p["objects"]]) for p in caption["phrases"]}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[words], expected[words]) for words in expected)


@pytest.mark.parametrize("kind", [GRAND, PSG])
def test_phrases_with_run_lengths(tmp_path, kind):
    groundings = {"a red cat bed": grounding(SECOND, at=[14, 27]), "A cat": grounding(FIRST, at=[0, 5])}
    sample = load(tmp_path, kind, [grand(groundings)])
    same(phrase_masks(sample), {"A cat": FIRST, "a red cat bed": SECOND})
    assert [one.texts for one in sample.objects] == [("a red cat bed",), ("A cat",)]
    assert [p["start"] for p in sample.more["captions"][0]["phrases"]] == [0, 14]
    assert sample.path == f"{PLACES[kind]}/{NAME}" and not sample.notes


def test_overlapping_masks_of_a_phrase_are_one_object(tmp_path):
    sample = load(tmp_path, GRAND, [grand({"A cat": grounding(FIRST, SECOND, FIRST, at=[0, 5])})])
    assert np.array_equal(sample.frames[0].masks, [FIRST | SECOND])


@pytest.mark.parametrize(
    "quoted", [f'"{CAPTION}"', f'" {CAPTION} "', f' "{CAPTION}" ', f'"{CAPTION}', f'""{CAPTION}""']
)
@pytest.mark.parametrize("counted_with_quotes", [True, False])
def test_quotes_around_a_caption_move_the_places(tmp_path, quoted, counted_with_quotes):
    shift = quoted.index("A") if counted_with_quotes else 0
    at = {"A cat": [0, 5], "a red cat bed": [14, 27]}
    groundings = {words: grounding(FIRST, at=[n + shift for n in span]) for words, span in at.items()}
    sample = load(tmp_path, GRAND, [grand(groundings, quoted)])
    (caption,) = sample.more["captions"]
    assert caption["text"] == CAPTION and caption["record"]["caption"] == quoted
    assert {p["text"]: [p["start"], p["end"]] for p in caption["phrases"]} == at
    assert sample.notes == ({} if counted_with_quotes else {captions.UNSHIFTED: 2})


@pytest.mark.parametrize("caption", ['The sign says "stop"', '"Stop" it says.', "plain", ""])
def test_quotes_inside_a_caption_stay(caption):
    assert strip_quotes(caption) == (caption, 0)


def test_places_are_checked_against_the_phrase():
    notes: Counter[str] = Counter()
    assert locate_phrase("the cat", "A dog and The Cat", 0, (10, 17), 0, notes) == (10, 17) and not +notes
    assert locate_phrase("cat", "A cat, a cat", 0, (7, 10), 0, notes) == (9, 12)
    assert notes == {captions.UNSHIFTED: 0, captions.MENDED: 1}
    assert locate_phrase("cat", "cat and cat or cat", 3, (8 + 3, 10 + 3), 0, notes) == (8, 11)
    assert locate_phrase("cat", "cat and cat or cat", 3, (14, 16), 0, notes) == (8, 11)
    assert locate_phrase("horse", "A cat, a cat", 0, (0, 5), 0, notes) is None
    assert locate_phrase("cat", "bobcat, category", 0, None, 0, notes) is None
    assert locate_phrase("", "A cat", 0, (0, 0), 0, notes) is None
    assert notes[captions.LOST] == 3
    assert find_phrase("a (big) cat?", "See A (BIG) CAT? now") == [(4, 16)]


def test_places_without_a_phrase_cut_no_word():
    notes: Counter[str] = Counter()
    assert shift_span("A cat sits", 1, (1, 6), notes) == (0, 5) and not +notes
    assert shift_span("A cat sits", 1, (0, 5), notes) == (0, 5) and notes[captions.UNSHIFTED] == 1
    assert shift_span("See a cat", 2, (4, 9), notes) == (4, 9) and notes[captions.UNSHIFTED] == 2
    assert shift_span("A cat sits", 0, (3, 5), notes) == (3, 5) and notes[captions.CUT] == 1
    assert shift_span("A cat sits", 0, (3, 50), notes) is None and shift_span("A cat", 0, (4, 4), notes) is None
    assert notes[captions.LOST] == 2


def test_a_phrase_that_is_not_in_its_caption_keeps_its_object(tmp_path):
    sample = load(tmp_path, GRAND, [grand({"A dog": grounding(FIRST, at=[0, 5])})])
    (phrase,) = sample.more["captions"][0]["phrases"]
    assert (phrase["start"], phrase["text"], phrase["objects"]) == (None, "A dog", ["0"])
    assert sample.notes == {captions.LOST: 1}


def test_overlapping_places_are_kept_and_flagged(tmp_path):
    at = {"a red cat bed": [14, 27], "red cat": [16, 23], "A cat": [0, 5]}
    groundings = {words: grounding(mask, at=at[words]) for words, mask in zip(at, (FIRST, SECOND, THIRD), strict=True)}
    sample = load(tmp_path, PSG, [grand(groundings)])
    phrases = sample.more["captions"][0]["phrases"]
    assert [(p["text"], p["overlaps"]) for p in phrases] == [
        ("A cat", False),
        ("a red cat bed", True),
        ("red cat", True),
    ]
    assert sample.notes == {captions.OVERLAPPING: 2}


def test_all_captions_of_a_picture_are_one_sample(tmp_path):
    other = grand({"The bed": grounding(FIRST, at=[0, 7])}, "The bed is red.", id=5)
    sample = load(tmp_path, GRAND, [grand(), other])
    assert [caption["text"] for caption in sample.more["captions"]] == [CAPTION, "The bed is red."]
    assert [one.texts for one in sample.objects] == [("A cat", "The bed")]  # one mask, one object
    assert sample.more["captions"][1]["record"]["id"] == 5


def test_phrases_of_refcocog_are_found_in_the_caption(tmp_path):
    bed = [[60, 60, 90, 60, 90, 80, 60, 80]]
    sample = load(tmp_path, REF, [refcocog(("a CAT", [SQUARE, SQUARE]), ("cat", bed))], name=f"COCO_train2014_{NAME}")
    phrases = sample.more["captions"][0]["phrases"]
    assert [(p["text"], p["start"]) for p in phrases] == [("A cat", 0), ("cat", 2)]
    same(phrase_masks(sample), {"A cat": box(20, 10, 60, 50), "cat": box(60, 60, 80, 90)})
    assert sample.objects[0].more["annotations"][0]["says"]["bbox"] == [1, 2, 3, 4]


def test_equal_phrases_of_refcocog_have_a_place_each(tmp_path):
    shapes = [[[10 * n, 10, 10 * n + 8, 10, 10 * n + 8, 30, 10 * n, 30]] for n in range(1, 4)]
    sample = load(tmp_path, REF, [refcocog(*(("cat", shape) for shape in shapes))])
    phrases = sample.more["captions"][0]["phrases"]
    assert [(p["start"], p["objects"]) for p in phrases] == [(2, ["0"]), (20, ["1", "2"])]
    assert sample.notes == {captions.SHARED: 1}


def test_refcocogs_pictures_are_taken_as_they_are_stored(tmp_path):
    sample = load(tmp_path, REF, [refcocog(("A cat", [SQUARE]))], picture=jpeg(orientation=6))
    assert sample.frames[0].picture.size == (WIDTH, HEIGHT)


def test_flickr_captions_share_their_photo(tmp_path):
    content = flickr(
        (CAPTION, [([[0, 5]], FIRST), ([[14, 27]], SECOND)]),
        ("Cat, and cat", [([[0, 3], [9, 12]], FIRST), ([[0, 3], [9, 12]], THIRD)]),
    )
    sample = load(tmp_path, FLICKR, content)
    same(phrase_masks(sample), {"A cat": FIRST, "a red cat bed": SECOND})
    spans = [(p["text"], p["start"], p["objects"]) for p in sample.more["captions"][1]["phrases"]]
    assert spans == [("Cat", 0, ["2"]), ("cat", 9, ["2"])]  # every span, not only the first
    assert np.array_equal(sample.frames[0].masks[2], FIRST | THIRD)
    assert [one["id"] for one in sample.objects[2].more["annotations"][0]["says"]] == [2, 3]


def test_flickr_regions_that_are_ignored_or_have_no_place_or_caption(tmp_path):
    content = flickr((CAPTION, [([[0, 5]], FIRST), ([[14, 27]], SECOND, {"ignore": 1}), ([], THIRD)]))
    content["annotations"].append({"id": 9, "image_id": 77, "tokens_positive": [], "sam_mask": {}})
    found = Found("gcg", write(tmp_path / "raw", FLICKR, content), tmp_path)
    sample = found.load()
    assert [one.texts for one in sample.objects] == [("A cat",), ()]
    assert sample.notes == {IGNORED: 1, NO_SPAN: 1} and found.counts["regions of no caption"] == 1


def test_short_captions_and_those_without_groundings_are_counted(tmp_path):
    sample = load(tmp_path, GRAND, [grand(), grand({}, "A cat"), grand({}, "Nothing to see here")])
    assert len(sample.more["captions"]) == 3 and sample.notes == {SHORT: 1, BARE: 2}
    with pytest.raises(BadInput, match="no region that can be used"):
        load(tmp_path, GRAND, [grand({})])


@pytest.mark.parametrize(
    "mask, why",
    [
        (rle(np.zeros((HEIGHT, WIDTH), bool)), "empty mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2]}, "broken run lengths"),
        (rle(box(5, 5, 60, 45, (WIDTH, HEIGHT))), "mask and picture differ in shape"),
    ],
)
def test_regions_that_cannot_be_used(tmp_path, mask, why):
    groundings = {"A cat": {"token_positives": [0, 5], "rle_masks": [mask]}, "cat bed": grounding(SECOND, at=[20, 27])}
    sample = load(tmp_path, GRAND, [grand(groundings, extra=1), grand()])
    assert [one.id for one in sample.objects] == ["1", "2"] and sample.notes == {LEFT_OUT + why: 1}
    assert [p["objects"] for p in sample.more["captions"][0]["phrases"]] == [["0"], ["1"]]


@pytest.mark.parametrize("name", [NAME, f"train2017/{NAME}", f"val2017/{NAME}"])
@pytest.mark.parametrize("folder", ["images/coco2017/train2017", "coco_2017/val2017", "glamm_data/images/coco2017"])
def test_openpsg_names_with_and_without_their_folder(tmp_path, name, folder):
    put(tmp_path / "raw" / "GranDf/annotations/train" / f"{PSG}_train.json", [{**grand(), "file_name": name}])
    put(tmp_path / "raw" / folder / NAME, jpeg())
    assert Found("gcg", tmp_path / "raw", tmp_path).paths == [f"{folder}/{NAME}"]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg"])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    put(tmp_path / "secret.jpg", jpeg())
    found = Found("gcg", write(tmp_path / "raw", GRAND, [{**grand(), "file_name": name}]), tmp_path)
    with pytest.raises(BadInput, match=OUTSIDE):
        found.load()


def test_what_is_missing_or_of_another_shape_is_counted(tmp_path):
    missing = {**grand(), "file_name": "000000000010.jpg"}
    root = write(tmp_path / "raw", GRAND, [grand(), missing, "text", {"file_name": NAME}, {"caption": CAPTION}])
    content = flickr((CAPTION, [([[0, 5]], FIRST)]))
    content["images"][0]["file_name"] = "none.jpg"
    write(root, FLICKR, content)
    found = Found("gcg", root, tmp_path)
    assert found.counts["captions without a picture"] == 2 and found.counts["captions of another shape"] == 3
    assert found.counts[f"captions of {GRAND}_train.json"] == 2
    assert found.paths == [f"{PLACES[FLICKR]}/none.jpg", f"{PLACES[GRAND]}/{NAME}", f"{PLACES[GRAND]}/000000000010.jpg"]
    for path in (found.paths[0], found.paths[2]):
        with pytest.raises(BadInput, match="no such file"):
            found.load(path)


def test_splits(tmp_path):
    write(tmp_path / "raw", GRAND, [grand(caption="A cat in val.")], split="val")
    assert Found("gcg", tmp_path / "raw", tmp_path, split="val").load().more["captions"][0]["text"] == "A cat in val."
    with pytest.raises(UserError, match="no annotations"):
        Found("gcg", tmp_path / "raw", tmp_path)
    with pytest.raises(UserError, match="no such split"):
        Found("gcg", tmp_path / "raw", tmp_path, split="../train")


@pytest.mark.parametrize("kind", [GRAND, FLICKR])
@pytest.mark.parametrize("damage", [b'{"images": [{"id": 1', b"[1, 2", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_annotations_stop_the_run(tmp_path, kind, damage):
    with pytest.raises(UserError, match=r"_train.json: (not whole JSON|a pointer)"):
        Found("gcg", write(tmp_path / "raw", kind, damage), tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    root = write(tmp_path / "raw", GRAND, [grand(caption=f'"{CAPTION}"')])
    write(root, PSG, [grand(), {**grand(), "file_name": "8.jpg"}], picture=jpeg("coffee"))
    put(root / PLACES[PSG] / "8.jpg", b"broken")
    write(root, REF, [refcocog(("A cat", [SQUARE]))], name=f"COCO_train2014_{NAME}")
    write(root, FLICKR, flickr((CAPTION, [([[0, 5]], FIRST)])), picture=jpeg("astronaut"))
    summary, samples = through("gcg", root, tmp_path, max_bad=0.3)
    assert summary.manifest.samples == 4 and summary.manifest.left_out == {"cannot be read as a picture": 1}
    for meta in samples.values():
        (caption,) = meta["captions"]
        assert caption["text"] == CAPTION
        assert caption["phrases"] == [{"start": 0, "end": 5, "text": "A cat", "objects": ["0"], "overlaps": False}]
        assert [(one["id"], one["texts"]) for one in meta["objects"]] == [("0", ["A cat"])]
    assert summary.manifest.options["split"] == "train"
