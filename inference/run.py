"""Prediction from files to files: what `cli.py predict` does once its options are parsed.

Each question leaves `NAME.json` with the answer and the names of the masks' files, the masks, and an overlay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from inference.pictures import files_of_frames, read_picture, read_region, write, write_masks
from inference.predictor import Predictor
from pipeline.resize import UInt8
from shards.errors import BadInput, UserError
from shards.printable import shortened
from trainer.model.prompts import IMAGE

Load = Callable[[], Predictor]
"""Loads the model; called once the files that were asked for are known to be there."""


def predict(
    load: Load,
    out: Path,
    *,
    image: Path | None = None,
    text: str | None = None,
    regions: Sequence[Path] = (),
    video: Path | None = None,
    images: Path | None = None,
    texts: Path | None = None,
    batch_size: int = 8,
) -> Iterator[str]:
    """Answer what the options ask for, and say the answers.

    Raises:
        UserError: options that do not go together, or files that are not as they should be.
    """
    given = {"--image": image, "--video": video, "--images": images}
    met = [option for option, value in given.items() if value is not None]
    if len(met) != 1:
        raise UserError("one thing to predict from", met=" and ".join(met) or "nothing", wanted=" or ".join(given))
    if (images is None) != (texts is None) or (images is not None and text is not None):
        raise UserError("questions", wanted="--images FOLDER with --texts FILE; --image or --video with --text TEXT")
    if regions and image is None:
        raise UserError("--region needs --image")
    if text is None and images is None and not regions:
        raise UserError("nothing is asked", met=f"{met[0]} alone", wanted='--text, such as "Please segment the dog."')
    if text is not None and not _is_unicode(text):
        raise UserError("not UTF-8", where="--text", met=repr(text), do="give the question in the terminal's encoding")
    if image is not None:
        return describe(load, image, text, regions, out) if regions else segment(load, image, str(text), out)
    if video is not None:
        return track(load, video, str(text), out)
    assert images is not None and texts is not None
    return segment_many(load, images, texts, out, batch_size)


def segment(load: Load, image: Path, text: str, out: Path) -> Iterator[str]:
    """One question about one picture: masks."""
    picture = read_picture(image)
    answer = load().segment([picture], [text], [str(image)])[0]
    masks = write_masks(out, image.stem, picture, answer.masks)
    _note(out, image.stem, {"image": str(image), "question": text, "answer": answer.text, "masks": masks})
    yield f"{image.name}: {answer.text}"


def describe(load: Load, image: Path, text: str | None, regions: Sequence[Path], out: Path) -> Iterator[str]:
    """A caption of regions of one picture."""
    picture, masks = read_picture(image), [read_region(path) for path in regions]
    for path, mask in zip(regions, masks, strict=True):
        if mask.shape != picture.shape[:2]:
            met, wanted = (f"{width} x {height}" for height, width in (mask.shape, picture.shape[:2]))
            raise UserError("a region of another size than its picture", where=str(path), met=met, wanted=wanted)
    texts = None if text is None else [text]
    answer = load().describe([picture], [np.stack(masks)], texts, [str(image)])[0]
    named = [str(path) for path in regions]
    _note(out, image.stem, {"image": str(image), "regions": named, "question": text, "answer": answer})
    yield f"{image.name}: {answer}"


class _Frames(Sequence[UInt8]):
    """Frames that are read when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Any) -> Any:
        return read_picture(self.paths[place])


def track(load: Load, folder: Path, text: str, out: Path) -> Iterator[str]:
    """One question about the frames in `folder`: masks of each."""
    frames = _Frames(files_of_frames(folder))
    found = load().track(frames, text, str(folder))
    yield f"{folder.name}: {found.text}"
    noted = []
    masks_of = tqdm(zip(frames.paths, found.masks, strict=True), total=len(frames), unit="frame", leave=False)
    for path, masks in masks_of:
        noted.append({"frame": path.name, "masks": write_masks(out, path.stem, read_picture(path), masks)})
    whole = {"video": str(folder), "question": text, "answer": found.text, "objects": found.objects, "frames": noted}
    _note(out, folder.resolve().name, whole)


@dataclass(frozen=True)
class Question:
    """What is asked of a picture."""

    name: str
    """Of its outputs."""
    path: Path
    text: str


def segment_many(load: Load, images: Path, texts: Path, out: Path, batch_size: int) -> Iterator[str]:
    """The questions in the file `texts` about pictures in the folder `images`, in batches.

    A picture that cannot be read is named and left out, and the run ends with an error.
    """
    questions = read_questions(images, texts)
    predictor = load()
    bad = []
    for start in tqdm(range(0, len(questions), batch_size), unit="batch", leave=False):
        read: dict[Path, UInt8] = {}
        batch = []
        for question in questions[start : start + batch_size]:
            try:
                if question.path not in read:
                    read[question.path] = read_picture(question.path)
                batch.append(question)
            except BadInput as error:
                bad.append(str(error))
        if not batch:
            continue
        asked = [q.text for q in batch]
        answers = predictor.segment([read[q.path] for q in batch], asked, [str(q.path) for q in batch])
        for question, answer in zip(batch, answers, strict=True):
            masks = write_masks(out, question.name, read[question.path], answer.masks)
            noted = {"image": str(question.path), "question": question.text, "answer": answer.text, "masks": masks}
            _note(out, question.name, noted)
            yield f"{question.name}: {answer.text}"
    if bad:
        met = bad[0] if len(bad) == 1 else f"{bad[0]} (and {len(bad) - 1} more)"
        raise UserError(f"{len(bad)} of {len(questions)} questions are not answered", met=met)


def read_questions(images: Path, texts: Path) -> list[Question]:
    """The questions in the file `texts`, about pictures in the folder `images`.

    Lines are `FILE<TAB>question`; empty ones are skipped.

    Raises:
        UserError: a line that is no question, or names no picture.
    """
    try:
        # Not `splitlines`: what else ends a line elsewhere may stand in a name or a question.
        lines = texts.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        met = getattr(error, "strerror", None) or "other bytes"
        raise UserError("cannot be read as text", where=str(texts), met=met, wanted="UTF-8") from None
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, text = (part.strip(" \t") for part in line.partition("\t"))
        path, where = PurePosixPath(name), f"{texts}, line {number}"
        if not name or not text or text.count(IMAGE) > 1:
            raise UserError("not a question", where=where, met=repr(line[:80]), wanted="FILE, a tab, one question")
        if path.is_absolute() or ".." in path.parts or not _is_file(images / path):
            raise UserError("no such picture", where=where, met=shortened(name), wanted=f"a file in {images}")
        # The line's number keeps several questions about a picture apart.
        questions.append(Question(f"{number:05d}-{path.stem}", images / path, text))
    if not questions:
        raise UserError("no questions", where=str(texts), wanted="lines of FILE, a tab, a question")
    return questions


def _is_unicode(text: str) -> bool:
    """Whether no byte of the command line was left as half a surrogate pair."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds NUL
        return False


def _note(out: Path, name: str, values: dict[str, Any]) -> None:
    write(
        out / f"{name}.json",
        (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"),
    )
