"""Small layouts of every source: real photographs and known shapes, in the files of its dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo.make_sav import write as write_sav
from tests.pipeline.built import jpeg, put, tar_of, zipped
from tests.pipeline.sources import (
    test_annotations_json,
    test_coco,
    test_dam,
    test_folder,
    test_gcg,
    test_grefer,
    test_llava,
    test_openimages,
    test_osprey,
    test_reasonseg,
    test_refvos,
    test_sa1b,
    test_sav_video,
    test_text,
    test_videoqa,
    videos,
)


@dataclass(frozen=True)
class Case:
    """A few inputs in a dataset's layout."""

    write: Callable[[Path], object]
    samples: int
    """Number of samples that the inputs become."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of inputs that do not become samples, by reason."""
    texts: tuple[str, ...] = ()
    """Some texts of the objects, expressions and turns. Without any, the dual loop is trained."""
    without_text: int = 0
    """Samples whose objects have no text."""
    options: tuple[str, ...] = ()
    objective: str = ""
    """What is trained; empty: `segment` where there are texts, else `dual`."""


def write_coco(root: Path, name: str = "instances_train2017.json") -> None:
    """Write two pictures. The second one has no annotation."""
    objects = [test_coco.annotation(1, 7, test_coco.SQUARE, 18), test_coco.annotation(2, 7, test_coco.SQUARE)]
    pictures = [{**test_coco.picture(n), "coco_url": f"http://x/train2017/{n:012d}.jpg"} for n in (7, 8)]
    test_coco.write_instances(root, pictures, objects, name)
    for number in (7, 8):
        test_coco.jpeg(root / f"train2017/{number:012d}.jpg")


def write_osprey(root: Path) -> None:
    """Write the records of two pictures. The second one has conversations only."""
    described = test_osprey.described()
    spoken = test_osprey.record(conversations=test_osprey.talk("What is <region1>?", "A cat."), file_name="8.jpg")
    test_osprey.write(root, described, spoken)
    put(root / "coco/train2017/8.jpg", jpeg("coffee"))


def write_dam(root: Path) -> None:
    """Write two subsets. In the second one no region has a caption."""
    test_dam.write(root, test_dam.region(), test_dam.region(test_dam.SECOND, None, 2), subset="PACO")
    test_dam.write(root, test_dam.region(caption=None), subset="SAV")


def write_gcg(root: Path) -> None:
    phrase = test_gcg.CAPTION[:5], [test_gcg.SQUARE]
    test_gcg.write(root, test_gcg.GRAND, [test_gcg.grand()])
    test_gcg.write(root, test_gcg.PSG, [test_gcg.grand()])
    test_gcg.write(root, test_gcg.REF, [test_gcg.refcocog(phrase)], name=f"COCO_train2014_{test_gcg.NAME}")
    test_gcg.write(root, test_gcg.FLICKR, test_gcg.flickr((test_gcg.CAPTION, [([[0, 5]], test_gcg.FIRST)])))


def write_folder(root: Path) -> None:
    root.mkdir()
    test_folder.write_pictures(root)
    pair = {"frames": ["a.jpg", "b.png"], "objects": [{"masks": ["m.png", "ids.png"], "texts": ["The cup."]}], "id": 1}
    test_folder.write(root, pair, {"image": "b.png", "objects": [{"mask": "m.png"}]}, "broken")


def write_reasonseg(root: Path) -> None:
    """Write a picture with a region to ignore, one with a name instead of questions, and a JSON without a picture."""
    source = test_reasonseg
    source.write(root, "a", source.shape(*source.LARGE), source.shape(*source.SMALL, label="ignore"))
    source.write(root, "b", source.shape(*source.LARGE), text=["cup"], is_sentence=False)
    put(root / "train/c.json", source.content(source.shape(*source.LARGE)))


def write_revos(root: Path) -> None:
    """Write two videos. No expression of the second one has an object."""
    test_refvos.write_revos(root)
    for n in range(4):
        videos.write_frame(root / f"ReVOS/JPEGImages/MOSE/none/{n:05d}.jpg", n)


def write_llava(root: Path) -> None:
    """Write the records of two pictures and of a text, and one whose picture is missing."""
    source = test_llava
    source.write_llava(root, *source.RECORDS, source.record("<image>?", "a", image="coco/train2017/1.jpg"))


def write_openimages(root: Path) -> None:
    """Write an object of a class without a name, one in a zip, and a photo without an object."""
    source = test_openimages
    rows = [
        source.row(source.FIRST),
        source.row(source.FIRST, "aa", "/m/0zzz"),
        source.row(source.SECOND, label="/m/0663v"),
    ]
    masks = {**source.ONE, source.mask_name(source.FIRST, "aa", "m0zzz"): source.png(source.shape(left=0.5))}
    source.write_openimages(root, rows, masks, (source.FIRST, source.SECOND, source.THIRD))
    in_zip = {source.mask_name(source.SECOND, mid="m0663v"): source.png(source.shape(800, 600))}
    (root / "train-masks-0.zip").write_bytes(zipped(in_zip))


def write_sa1b(root: Path) -> None:
    test_sa1b.write(root, {**test_sa1b.pair(1), "sa_000000.tar": tar_of(test_sa1b.pair(2))})


def write_video(root: Path) -> None:
    videos.write_video(root.parent / "video.mp4", test_sav_video.FRAMES)
    test_sav_video.write_sav_video(root / "sav_train", root.parent / "video.mp4")


def write_ref_sav(root: Path) -> None:
    write_video(root)
    test_sav_video.write_ref_sav(root)


def write_sa2va_training(root: Path) -> None:
    """Write small layouts of the datasets that Sa2VA is trained on, where they lie in the folder of its data."""
    for name, split_by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        test_coco.write_refer(root / "ref_seg" / name, name, split_by)
        for part in ("instances.json", f"refs({split_by}).p"):
            (root / "ref_seg" / name / name / part).rename(root / "ref_seg" / name / part)
        (root / "ref_seg" / name / name).rmdir()
        (root / "ref_seg" / name / "images/mscoco/images").rename(root / "ref_seg" / name / "coco2014")
    videos_root = root / "video_datas"
    test_refvos.write_revos(videos_root / "revos", "", "")
    test_refvos.write_mevis(videos_root / "mevis")
    test_refvos.write_youtube(videos_root / "rvos")
    videos.write_video(videos_root / "video.mp4", test_sav_video.FRAMES)
    test_sav_video.write_sav_video(videos_root / "sam_v_full/sav_train", videos_root / "video.mp4")
    test_sav_video.write_ref_sav(videos_root)
    test_videoqa.write_videoqa(videos_root, frames=4)
    test_llava.write_llava(root / "llava_data")
    write_gcg(root / "glamm_data")
    write_osprey(root / "osprey-724k")
    spoken = test_osprey.record(conversations=test_osprey.talk("What is <region1>?", "A cat."))
    put(root / "osprey-724k/Osprey-724K/osprey_conversation.json", [spoken])


_NOTHING = {"no annotated object": 1}
_LVIS = "lvis_v1_train.json"
_FEW = ("--frames", "2")  # fewer pictures to encode, to check and to draw
_REFER = Case(test_coco.write_refer, 1, _NOTHING, ("The LEFT woman.", "lady in orange"))
CASES = {
    "sav": Case(lambda root: write_sav(root, 2), 2),
    "coco": Case(write_coco, 1, _NOTHING, ("dog", "person")),
    "lvis": Case(lambda root: write_coco(root, _LVIS), 1, _NOTHING, ("dog", "person")),
    "refcoco": Case(lambda root: test_coco.write_refer(root, "refcoco"), 1, _NOTHING, _REFER.texts),
    "refcoco+": _REFER,
    "refcocog": Case(lambda root: test_coco.write_refer(root, "refcocog", "umd"), 1, _NOTHING, _REFER.texts),
    "grefcoco": Case(
        lambda root: test_grefer.write_grefer(root, pictures=(7, 8)),
        2,
        {},
        ("both of them", "the left one", "a zebra", "nobody"),
        without_text=1,
    ),
    "reasonseg": Case(write_reasonseg, 2, {"a json without its image": 1}, ("What may it drink from?", "cup")),
    "osprey": Case(write_osprey, 2, {}, ("Thing 1.", "Thing 2."), without_text=1),
    "dam": Case(write_dam, 2, {}, ("A cat's head.",), without_text=1),
    "gcg": Case(write_gcg, 4, {}, ("A cat",)),
    "llava": Case(
        write_llava, 3, {"no such file": 1}, ("What are the colors of the bus?", "Twice."), objective="converse"
    ),
    "videoqa": Case(
        test_videoqa.write_videoqa, 2, {}, ("What is he doing?", "A woman."), objective="converse", options=_FEW
    ),
    "text": Case(test_text.write_text, 3, {"not whole JSON": 1, "not a record": 1}, ("Why?",), objective="converse"),
    "folder": Case(write_folder, 2, {"not a sample": 1}, ("The cup.",), without_text=1),
    "sa1b": Case(write_sa1b, 2),
    "openimages": Case(write_openimages, 2, _NOTHING, ("Dog", "Pizza, hot")),
    "ref-youtube-vos": Case(test_refvos.write_youtube, 2, {}, ("a1 says 0", "b0 says 9"), options=_FEW),
    "mevis": Case(test_refvos.write_mevis, 1, {}, ("the left one",)),
    "revos": Case(
        write_revos, 2, {}, ("which one may fly?", "the giraffe", "the elephant"), without_text=1, options=_FEW
    ),
    "ref-davis": Case(test_refvos.write_davis, 1, {}, ("annot1 café 2", "annot2_full_video café 4"), options=_FEW),
    "sav-video": Case(write_video, 2, {"visible in too few frames": 2}, options=("--split", "manual")),
    "ref-sav": Case(write_ref_sav, 1, {}, ("The disc that comes late.", "A disc."), options=_FEW),
}
FORMS = {"annotations.json": ("folder", Case(test_annotations_json.write_annotations, 2, {"not a sample": 1}))}
"""Further forms in which a source reads its data: name -> source, and a few inputs."""
PARTS = {"gcg": ("grandf", "openpsg", "refcocog", "flickr30k"), "osprey": ("conversation", "description")}
"""Sources that read one file of another source: `gcg-grandf` and so on."""
