"""A small RefCOCO of real photographs, and the tiny model in a folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pycocotools import mask as coco

from trainer.released.folder import save_model

PHOTOS = {1: skimage.data.chelsea(), 2: skimage.data.coffee()[:300], 3: skimage.data.astronaut()[:, :400]}
"""Number of a picture -> (H, W, 3) uint8."""
OBJECTS = {
    11: (1, (60, 250, 120, 350)),
    12: (1, (130, 160, 180, 210)),
    21: (2, (80, 290, 200, 420)),
    31: (3, (0, 250, 130, 330)),
}
"""Number of an object -> its picture, and its rows and columns."""
SENTENCES = {
    11: ["The cat.", "the animal with whiskers", "cat"],
    12: ["its left eye"],
    21: ["A cup!", "the cup of coffee on the table, to the right of the spoon"],
    31: ["the woman"],
}
NAME = "COCO_train2014_{:012d}.jpg"


def truth_of(number: int) -> np.ndarray:
    """Return the mask of an object, drawn from `OBJECTS` alone."""
    picture, (top, bottom, left, right) = OBJECTS[number]
    mask = np.zeros(PHOTOS[picture].shape[:2], bool)
    mask[top:bottom, left:right] = True
    return mask


def item_of(number: int, sentence: int) -> str:
    """Return the id of an item: that of its ref and that of its sentence."""
    return f"{number + 500}:{10 * number + sentence}"


ITEMS = {item_of(number, n): number for number, texts in SENTENCES.items() for n in range(len(texts))}
"""Id of each item -> its object."""


def _annotation(number: int) -> dict:
    mask = coco.encode(np.asfortranarray(truth_of(number).view(np.uint8)))
    segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
    return {"id": number, "image_id": OBJECTS[number][0], "category_id": 1, "segmentation": segmentation, "iscrowd": 0}


def _sentences(number: int) -> list[dict]:
    texts = enumerate(SENTENCES[number])
    return [{"raw": text, "sent": text.lower().strip(".!"), "sent_id": 10 * number + n} for n, text in texts]


def refs_of(split: str) -> list[dict]:
    """Return one ref for each object, with all its sentences."""
    common = {"category_id": 1, "split": split}
    return [
        {**common, "ref_id": n + 500, "ann_id": n, "image_id": OBJECTS[n][0], "sentences": _sentences(n)}
        for n in OBJECTS
    ]


def write_refer(root: Path, name: str, refs: list[dict], file: str) -> None:
    """Write the folder of a dataset: refs, and the annotations of all objects."""
    folder = root / name
    folder.mkdir(parents=True)
    images = [
        {"id": n, "file_name": NAME.format(n), "height": photo.shape[0], "width": photo.shape[1]}
        for n, photo in PHOTOS.items()
    ]
    body = {"images": images, "annotations": [*map(_annotation, OBJECTS)], "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(body))
    if file.endswith(".p"):
        (folder / file).write_bytes(pickle.dumps(refs, protocol=0))
    else:
        (folder / file).write_text(json.dumps(refs))


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """RefCOCO's split val and gRefCOCO's, below one folder. Not to be changed."""
    root = tmp_path_factory.mktemp("raw")
    pictures = root / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True)
    for number, photo in PHOTOS.items():
        Image.fromarray(photo).save(pictures / NAME.format(number), quality=90)
    common = {"category_id": 1, "split": "val"}
    write_refer(root, "refcoco", refs_of("val"), "refs(unc).p")
    both = {**common, "ref_id": 1, "ann_id": [11, 12], "image_id": 1, "no_target": False}
    none = {**common, "ref_id": 2, "ann_id": [-1], "image_id": 2, "no_target": True}
    one = {**common, "ref_id": 3, "ann_id": [31], "image_id": 3, "no_target": False}
    grefs = [
        {**ref, "sentences": [{"raw": text, "sent": text, "sent_id": ref["ref_id"]}]}
        for ref, text in ((both, "cat and its eye"), (none, "a dog"), (one, "woman"))
    ]
    write_refer(root, "grefcoco", grefs, "grefs(unc).json")
    return root


@pytest.fixture(scope="session")
def model_folder(talker, tmp_path_factory) -> Path:
    """The tiny model in the released layout."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(talker, folder)
    return folder
