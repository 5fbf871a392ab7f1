"""Find the files of the datasets of referring video segmentation. `docs/datasets/refvos.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.annotations import read_pairs
from pipeline.sources.refvos import Layout, RefVos
from pipeline.text import read_text
from pipeline.walk import matching
from shards.errors import UserError

_LINE = re.compile(r'\s*(\S+)\s+(\d+)\s+"?(.*?)"?\s*')
_MOST_BYTES = 1 << 28  # of a text file
_TEXTS = (
    "annot1",
    "annot1_full_video",
    "annot2",
    "annot2_full_video",
)  # an object's expressions alternate so
_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}


def youtube_vos(root: Path, split: str) -> Layout:
    """Masks are palette PNGs; where there are none, the pickle that Sa2VA derived from them."""
    file = _expressions(root / "meta_expressions" / split / "meta_expressions.json")
    annotations = f"{split}/Annotations"
    pickles = [root / split / "mask_dict.pkl", *([root / "mask_dict.pkl"] if split == "train" else [])]
    pickle = next((file for file in pickles if file.is_file()), None)
    test = file.parents[1] / "test" / file.name
    has_pngs = (root / annotations).is_dir()
    without = frozenset[str]()
    if split == "valid" and test.exists():  # the file of `valid` holds the videos of `test` too
        without = frozenset(name for name, _ in read_pairs(test, "videos"))
    return Layout(
        where=file,
        videos=read_pairs(file, "videos"),
        pictures=f"{split}/JPEGImages",
        annotations=annotations if has_pngs else "",
        masks=None if has_pngs else pickle,
        categories=_categories(root / split / "meta.json"),
        without=without,
    )


def mevis(root: Path, split: str) -> Layout:
    """Splits `train` and `valid_u`; `valid` and `test` have no masks."""
    released = root / split / "meta_expressions_release.json"  # of `test`
    file = released if released.is_file() else _expressions(root / split / "meta_expressions.json")
    masks = root / split / "mask_dict.json"
    videos = read_pairs(file, "videos")
    return Layout(file, videos, f"{split}/JPEGImages", masks=masks if masks.exists() else None)


def revos(root: Path, split: str) -> Layout:
    """Frames below `JPEGImages`, or as in Sa2VA's copy beside the files; one file of masks for all splits."""
    name = f"meta_expressions_{split}_.json"
    base = next((base for base in ("", "ReVOS/", "revos/") if (root / base / name).exists()), "")
    file = _expressions(root / base / name)
    official = (root / base / "JPEGImages").is_dir()
    pictures = f"{base}JPEGImages" if official else base.rstrip("/")
    return Layout(file, read_pairs(file, "videos"), pictures, masks=_file(root / base / "mask_dict.json"))


def davis(root: Path, split: str) -> Layout:
    """ReferFormer's conversion, which has the layout of Ref-YouTube-VOS, or DAVIS and the texts as released."""
    if (root / "meta_expressions").is_dir():
        return youtube_vos(root, split)
    texts = root / "davis_text_annotations"
    base = next((base for base in ("", "DAVIS/") if (root / base / "JPEGImages" / "480p").is_dir()), None)
    if not texts.is_dir() or base is None:
        raise UserError(
            "no expressions",
            where=str(root),
            wanted="meta_expressions/, or davis_text_annotations/ and DAVIS/",
            do="see docs/datasets/refvos.md",
        )
    names = _file(root / base / "ImageSets" / "2017" / f"{'val' if split == 'valid' else split}.txt")
    pictures = f"{base}JPEGImages/480p"
    annotations = f"{base}Annotations_unsupervised/480p"
    if not (root / annotations).is_dir():  # the semi-supervised ones number objects in another way
        raise UserError("no such folder", where=str(root / annotations), do="fetch DAVIS 2017 Unsupervised trainval")
    videos = _davis_videos(texts, _read(names, "utf-8").split(), root / pictures)
    return Layout(texts, videos, pictures, annotations)


def _davis_videos(texts: Path, names: list[str], pictures: Path) -> Iterator[tuple[str, Any]]:
    """Yield entries as in `meta_expressions.json`: per object, its expressions from the four files in turn."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    for place, kind in enumerate(_TEXTS):
        encoding = "utf-8" if kind.startswith("annot1") else "latin-1"
        file = _file(texts / f"Davis17_{kind}.txt")
        for number, line in enumerate(_read(file, encoding).split("\n"), 1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise UserError(
                    "broken line", where=f"{file}:{number}", met=line[:60], wanted='video, object, "expression"'
                )
            name = _MISSPELT.get(match[1], match[1])
            found.setdefault(name, {}).setdefault(match[2], [[] for _ in _TEXTS])[place].append(match[3])
    for name in names:
        expressions = [
            {"exp": text, "obj_id": number}
            for number, texts_by_file in sorted(found.get(name, {}).items())
            for texts_of_file in texts_by_file
            for text in texts_of_file
        ]
        frames = [path.stem for path in matching(pictures / name, "*.jpg")]
        yield name, {"expressions": {str(n): item for n, item in enumerate(expressions)}, "frames": frames}


def _categories(file: Path) -> dict[str, dict[str, str]]:
    """Return video -> object -> category; {} where the dataset has no such file."""
    if not file.exists():
        return {}
    try:
        return {
            name: {number: str(item["category"]) for number, item in body["objects"].items() if "category" in item}
            for name, body in read_pairs(file, "videos")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("not a file of objects", where=str(file), met=f"{type(error).__name__} {error}") from None


def _expressions(file: Path) -> Path:
    if not file.exists():
        raise UserError(
            "no expressions of this split",
            where=str(file),
            met="no such file",
            do="give --split, or --root; see docs/datasets/refvos.md for the layout",
        )
    return file


def _read(file: Path, encoding: str) -> str:
    data = read_text(file, _MOST_BYTES, UserError)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError("not its encoding", where=str(file), met=str(error), wanted=encoding) from None


def _file(file: Path) -> Path:
    if not file.exists():
        raise UserError("no such file", where=str(file), do="see docs/datasets/refvos.md for the layout")
    return file


REF_YOUTUBE_VOS = RefVos("ref-youtube-vos", youtube_vos, "obj_id")
MEVIS = RefVos("mevis", mevis, "anno_id")
REVOS = RefVos("revos", revos, "anno_id")
REF_DAVIS = RefVos("ref-davis", davis, "obj_id")
