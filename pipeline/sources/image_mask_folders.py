"""A user's own data in two folders, `images/` and `masks/`. `docs/datasets/folder.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.fit import check_size, note_size_differences
from pipeline.input_files import no_such_file
from pipeline.mask_values import distinct, looks_like_edges, read_ids
from pipeline.pictures import open_image, read_picture
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from pipeline.sources.objects import NO_OBJECT, Candidate, sample_of
from pipeline.spelling import look_alike
from pipeline.walk import count_beside, list_names, walk
from shards.errors import BadInput, DroppedInput

EDGES = "masks whose ids look like grey edges, not like objects"
VOID = "masks with pixels of no object beside the background (void)"
_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")  # in this order for masks: the safest first
_ENDS = ("_mask", "-mask", "_masks")  # that a mask's stem may have after the picture's
_MASK_WANTED = "a mask of the picture's name in masks/"
_MOST_OTHERS = 3
_ALIKE = "/"  # before the key of a stem (`look_alike`); no stem has it
Size = tuple[int, int]


def find_image_mask_folders(root: Path, records: RecordsWriter) -> dict[str, int]:
    """Add `images/A.jpg` with `masks/A.png`, an object's id in each pixel, or `masks/A/*.png`, one object each.

    A mask may have any suffix of a picture, in any case, and its name may end in `_mask`; such files are masks in
    `images/` too. Masks are not opened here: there may be millions.
    """
    counts: Counter[str] = Counter()
    in_folder = lru_cache(maxsize=1 << 10)(partial(_by_stem, root))
    not_pictures = lru_cache(maxsize=1 << 4)(partial(_by_stem_of_others, root))
    pictures: dict[str, str] = {}
    used = 0
    for path, size in sorted(walk(root, _is_picture, counts, records, lambda name: True, "images")):
        picture_path = PurePosixPath(path)
        if _picture_of(picture_path.stem) in in_folder(str(picture_path.parent)):
            counts["masks among the images"] += 1
            continue
        found, alone = _masks_of(root, picture_path, in_folder)
        used += len(found) * all(name.startswith("masks/") for name in found)
        counts["images"] += 1
        counts["images without a mask"] += not found
        records.add(path, size)
        others = [] if found else _other_files(root, picture_path, not_pictures)
        records.attach(path, {"masks": {"files": found, "alone": alone, "others": others}})
        for first in {pictures.setdefault(mask, path) for mask in found} - {path}:
            error = BadInput(
                "one mask for two pictures",
                met=f"{first} and {path} -> {found[0]}",
                wanted="a mask for each",
                do="rename or delete one",
            )
            for input_path in (first, path):
                refuse(records, input_path, error)
    stored = 0
    for path, size in walk(root, _is_picture, counts, records, lambda name: True, "masks"):
        stored += 1
        if not size and path not in pictures and not (root / path).exists():  # a link to nothing, of no picture
            refuse(records, path, no_such_file(root / path))
    counts["mask files without an image"] = stored - used
    count_beside(root, ("images", "masks"), counts, records)
    return dict(counts)


def load_image_mask_folders(root: Path, path: str, found: Mapping[str, Any], options: Mapping[str, Any]) -> RawSample:
    """Return the sample of a picture with the masks that `find_image_mask_folders` found."""
    picture = read_picture(below(root, path))
    size = (picture.height, picture.width)
    if not found["files"] and found["others"]:
        raise BadInput(
            "a mask file of a kind that is not taken",
            met=", ".join(found["others"]),
            wanted=" ".join(_PICTURES),
            do="save it as PNG",
        )
    if not found["files"]:
        raise DroppedInput(NO_OBJECT, met="a picture alone", wanted=_MASK_WANTED)
    notes: Counter[str] = Counter()
    if found["alone"]:
        candidates = [_single_mask(root, file, size, options) for file in found["files"]]
    else:
        candidates = [*_masks_of_ids(root, found["files"][0], size, options, notes)]
        if not candidates:
            raise DroppedInput(NO_OBJECT, met=f"{found['files'][0]}: the background alone", wanted="ids in the mask")
    raw = sample_of(path, "folder", [(path, picture)], candidates)
    return note_size_differences(replace(raw, notes=Counter(raw.notes) + notes))


def _single_mask(root: Path, file: str, size: Size, options: Mapping[str, Any]) -> Candidate:
    def read() -> Bool:
        mask = masks.from_image(open_image(below(root, file)), void=options.get("void"))
        check_size(mask.shape, size, options.get("mask_slack", 0))
        return mask

    return Candidate(RawObject(PurePosixPath(file).stem), [read])


def _masks_of_ids(
    root: Path, file: str, size: Size, options: Mapping[str, Any], notes: Counter[str]
) -> Iterator[Candidate]:
    values, ids = read_ids(below(root, file), options.get("void"))
    check_size(values.shape, size, options.get("mask_slack", 0))
    notes[EDGES] += looks_like_edges(values, ids)
    notes[VOID] += len(ids) < sum(number != 0 for number in distinct(values))
    for number in ids:
        yield Candidate(RawObject(str(number)), [partial(np.equal, values, number)])


def _masks_of(root: Path, picture: PurePosixPath, in_folder: Any) -> tuple[list[str], bool]:
    """Return the mask files of `images/.../A.jpg`, and whether each is of one object alone."""
    folder = PurePosixPath("masks", *picture.parent.parts[1:])
    if (root / folder / picture.stem).is_dir():
        masks_folder = folder / picture.stem
        return [str(masks_folder / name) for name in list_names(root / masks_folder) if _is_picture(name)], True
    stems = (picture.stem, picture.name, *(picture.stem + end for end in _ENDS))
    for place in (folder, picture.parent):
        for stem in stems if place == folder else stems[2:]:
            stored = in_folder(str(place))
            if names := stored.get(stem) or stored.get(f"{_ALIKE}{look_alike(stem)}"):
                return [str(place / names[0])], False
    return [], False


def _by_stem(root: Path, folder: str) -> dict[str, list[str]]:
    """Return stem, and its key (`look_alike`), -> names of pictures in a folder, the safest format for a mask first."""
    found: dict[str, list[str]] = {}
    try:
        names = list_names(root / folder)
    except OSError:
        return found
    for name in sorted(filter(_is_picture, names), key=lambda name: (_PICTURES.index(_suffix(name)), name)):
        found.setdefault(PurePosixPath(name).stem, []).append(name)
    alike: dict[str, set[str]] = {}
    for stem in found:
        alike.setdefault(f"{_ALIKE}{look_alike(stem)}", set()).add(stem)
    # A key that two stems share finds neither.
    return {**{key: found[stem] for key, stems in alike.items() if len(stems) == 1 for stem in stems}, **found}


def _other_files(root: Path, picture: PurePosixPath, not_pictures: Any) -> list[str]:
    """Return the first files in the place of masks of `images/.../A.jpg` that are no pictures: `masks/.../A.npy`."""
    folder = PurePosixPath("masks", *picture.parent.parts[1:])
    masks_folder = folder / picture.stem
    if (root / masks_folder).is_dir():
        return [str(masks_folder / name) for name in list_names(root / masks_folder)][:_MOST_OTHERS]
    stems = (picture.stem, picture.name, *(picture.stem + end for end in _ENDS))
    found = [str(folder / name) for stem in stems for name in not_pictures(str(folder)).get(stem, ())]
    return found[:_MOST_OTHERS]


def _by_stem_of_others(root: Path, folder: str) -> dict[str, list[str]]:
    """Return stem -> names of the files in a folder that are no pictures."""
    found: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in list_names(root / folder):
            if not _is_picture(name) and not (root / folder / name).is_dir():
                found.setdefault(PurePosixPath(name).stem, []).append(name)
    return found


def _picture_of(stem: str) -> str:
    """Return the stem of the picture of a mask with this stem, `A` for `A_mask`; empty where it is no mask's."""
    return next((stem.removesuffix(end) for end in _ENDS if stem.endswith(end)), "")


def _is_picture(name: str) -> bool:
    return _suffix(name) in _PICTURES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
