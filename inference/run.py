"""Predict from files to files, as the verb `predict` does.

Each question writes `NAME.json` with the answer and the names of the mask files, the masks, and an overlay: a picture,
or of a video a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from inference.phrases import without_marks
from inference.pictures import overlay, read_picture, read_region, write_json, write_masks
from inference.predictor import Predictor
from inference.prompted import Prompt, decode_region, encode_for_clicks
from inference.video import Frames, write_video
from pipeline.resize import UInt8
from shards.errors import BadInput, UserError
from shards.output_folder import check_output_folder
from shards.printable import shortened
from trainer.model.prompts import IMAGE

Load = Callable[[], Predictor]
"""Loads the model. It is called after the files have been checked."""


def predict(
    load: Load,
    out: Path,
    *,
    image: Path | None = None,
    text: str | None = None,
    regions: Sequence[Path] = (),
    prompts: Sequence[Prompt] = (),
    video: Path | None = None,
    images: Path | None = None,
    texts: Path | None = None,
    batch_size: int = 8,
) -> Iterator[str]:
    """Check the options, then answer the questions; yields one line per answer.

    Args:
        load: loads the model.
        out: folder for masks, overlays and answers; made if needed.
        image: a picture, with `text`, `regions` or `prompts`.
        text: the question about `image` or `video`.
        regions: mask files of regions to describe, each of the picture's size.
        prompts: boxes and clicks that mean more regions, each one region, numbered on from `regions`.
        video: folder of frames, or a video file, with `text`.
        images: folder of many pictures, with `texts`.
        texts: file with the questions about `images`, see `read_questions`.
        batch_size: questions per batch, for `images`.

    Raises:
        UserError: options that do not go together, or files that cannot be used.
    """
    inputs = {"--image": image, "--video": video, "--images": images}
    chosen = [option for option, value in inputs.items() if value is not None]
    if len(chosen) != 1:
        raise UserError("one thing to predict from", met=" and ".join(chosen) or "nothing", wanted=" or ".join(inputs))
    if (images is None) != (texts is None) or (images is not None and text is not None):
        raise UserError("questions", wanted="--images FOLDER with --texts FILE; --image or --video with --text TEXT")
    if (regions or prompts) and image is None:
        raise UserError("--region, --box and --point need --image")
    if text is None and images is None and not regions and not prompts:
        raise UserError(
            "nothing is asked", met=f"{chosen[0]} alone", wanted='--text, such as "Please segment the dog."'
        )
    if text is not None and not _is_unicode(text):
        raise UserError("not UTF-8", where="--text", met=repr(text), do="give the question in the terminal's encoding")
    check_output_folder(out)
    if image is not None:
        if regions or prompts:
            return describe(load, image, text, regions, prompts, out)
        return segment(load, image, str(text), out)
    if video is not None:
        return track(load, video, str(text), out)
    assert images is not None and texts is not None
    return segment_many(load, images, texts, out, batch_size)


def segment(load: Load, image: Path, text: str, out: Path) -> Iterator[str]:
    """Answer one question about one picture, with masks."""
    picture = read_picture(image)
    answer = load().segment([picture], [text], [str(image)])[0]
    masks = write_masks(out, image.stem, picture, answer.masks)
    values = {"image": str(image), "question": text, "answer": answer.text, "masks": masks}
    write_json(out / f"{image.stem}.json", values | _phrases(answer.text, masks))
    yield f"{image.name}: {answer.text}"


def _phrases(answer: str, masks: Sequence[str]) -> dict[str, Any]:
    """Return an answer without marks, and its phrases with the files of their masks."""
    plain, spans = without_marks(answer)
    phrases = [
        {
            "text": plain[span.start : span.end],
            "start": span.start,
            "end": span.end,
            "masks": [*masks[span.masks.start : span.masks.stop]],
        }
        for span in spans
    ]
    return {"plain": plain, "phrases": phrases}


def describe(
    load: Load, image: Path, text: str | None, regions: Sequence[Path], prompts: Sequence[Prompt], out: Path
) -> Iterator[str]:
    """Describe regions of one picture. Regions that boxes and clicks mean are written as masks."""
    picture = read_picture(image)
    height, width = picture.shape[:2]
    masks = [read_region(path) for path in regions]
    for path, mask in zip(regions, masks, strict=True):
        if mask.shape != (height, width):
            raise UserError(
                "a region of another size than its picture",
                where=str(path),
                met=f"{mask.shape[1]} x {mask.shape[0]}",
                wanted=f"{width} x {height}",
            )
    checked = [prompt.checked(height, width, str(image)) for prompt in prompts]
    predictor = load()
    if checked:
        features = encode_for_clicks(predictor, picture)
        masks += [decode_region(predictor, features, prompt, height, width) for prompt in checked]
    stacked = np.stack(masks)
    texts = None if text is None else [text]
    answer = predictor.describe([picture], [stacked], texts, [str(image)])[0]
    files = [str(path) for path in regions]
    if checked:
        files += write_masks(out, image.stem, picture, stacked, "region")[len(files) :]
    values = {"image": str(image), "regions": files, "question": text, "answer": answer}
    write_json(out / f"{image.stem}.json", values)
    yield f"{image.name}: {answer}"


def track(load: Load, video: Path, text: str, out: Path) -> Iterator[str]:
    """Answer one question about a video, with masks of every frame, and a video with the masks over it.

    Args:
        video: a folder of frames, or a video file.
    """
    frames = Frames(video)
    tracked = load().track(frames, text, str(video))
    yield f"{video.name}: {tracked.text}"
    name = video.resolve().name if video.is_dir() else video.stem
    overlaid = out / f"{name}.overlay.mp4"
    answered = out / f"{name}.json"
    for earlier in (overlaid, answered):  # so that an interrupted run leaves neither beside other masks
        earlier.unlink(missing_ok=True)
    written = []
    with write_video(overlaid, frames.rate) as add:
        pairs = zip(frames.names, tracked.masks, strict=True)
        for i, (frame, masks) in enumerate(tqdm(pairs, total=len(frames), unit="frame", leave=False)):
            written.append({"frame": frame, "masks": write_masks(out, Path(frame).stem, None, masks)})
            add(overlay(frames[i], masks))
    values = {"video": str(video), "question": text, "answer": tracked.text, "objects": tracked.objects}
    write_json(answered, values | {"frames": written})


@dataclass(frozen=True)
class Question:
    """A question about a picture."""

    name: str
    """Name of its outputs, without a suffix."""
    path: Path
    text: str


def segment_many(load: Load, images: Path, texts: Path, out: Path, batch_size: int) -> Iterator[str]:
    """Answer the questions in the file `texts` about pictures in the folder `images`, in batches.

    Pictures that cannot be read are left out; the run then ends with an error that names the first.
    """
    questions = read_questions(images, texts)
    predictor = load()
    bad = []
    for start in tqdm(range(0, len(questions), batch_size), unit="batch", leave=False):
        pictures: dict[Path, UInt8] = {}
        batch = []
        for question in questions[start : start + batch_size]:
            try:
                if question.path not in pictures:
                    pictures[question.path] = read_picture(question.path)
                batch.append(question)
            except BadInput as error:
                bad.append(str(error))
        if not batch:
            continue
        names = [str(question.path) for question in batch]
        answers = predictor.segment([pictures[q.path] for q in batch], [q.text for q in batch], names)
        for question, answer in zip(batch, answers, strict=True):
            masks = write_masks(out, question.name, pictures[question.path], answer.masks)
            values = {"image": str(question.path), "question": question.text, "answer": answer.text, "masks": masks}
            write_json(out / f"{question.name}.json", values | _phrases(answer.text, masks))
            yield f"{question.name}: {answer.text}"
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{len(bad)} of {len(questions)} questions are not answered", met=bad[0] + more)


def read_questions(images: Path, texts: Path) -> list[Question]:
    """Read the questions in the file `texts` about pictures in the folder `images`.

    Lines are `FILE<TAB>question`; empty lines are skipped.

    Raises:
        UserError: a line is no question, or names no picture.
    """
    try:
        # Not `splitlines`: names and questions may hold the other characters that it splits at.
        lines = texts.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "other bytes"
        raise UserError("cannot be read as text", where=str(texts), met=reason, wanted="UTF-8") from None
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, text = (part.strip(" \t") for part in line.partition("\t"))
        path = PurePosixPath(name)
        where = f"{texts}, line {number}"
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
    """Return whether a text is valid Unicode: an undecodable byte of the command line is half a surrogate pair."""
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
