"""Submissions to the servers that hold the truth of MeViS and Ref-YouTube-VOS: a zip of one PNG for each frame."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.published.datasets import Asked, Item, OpenBenchmark
from evaluation.published.predictions import Predictions, frame_of
from evaluation.published.scoring import UNANSWERED, Scored
from pipeline.cropped import Bool
from shards.errors import BadInput, UserError
from shards.lock import hold_lock

SUBMISSION = "submission.zip"
_WHITE = 255
_TOP = {"ref-youtube-vos": "Annotations/"}
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of a zip: its bytes follow from the masks alone


def write_submission(opened: OpenBenchmark, predictions: Predictions, file: Path, where: str) -> Scored:
    """Write the masks of all answered items: VIDEO/EXPRESSION/FRAME.png, 0 and 255, at the frame's size.

    Those of Ref-YouTube-VOS are in a folder Annotations, as Sa2VA and ReferFormer hand them in. Those of MeViS are in
    none (the guideline on its page).

    Args:
        opened: a split of videos.
        file: the zip; it gets its name once it is complete.
        where: the file of predictions, for messages.

    Returns:
        The items in the zip, without numbers, and what was left out.

    Raises:
        UserError: masks that do not fit their video; no item is answered.
    """
    top = _TOP.get(opened.benchmark.name, "")
    items: list[tuple[Asked, Item]] = []
    left_out: Counter[str] = Counter()
    try:
        with _new_zip(file) as archive:
            for asked in opened.asked:
                answered = [item for item in asked.items if item.id in predictions.of_item]
                left_out[UNANSWERED] += len(asked.items) - len(answered)
                if not answered:
                    continue
                try:
                    truth = opened.read(asked)
                    for n, name in enumerate(truth.frames.names):
                        height, width = truth.size(n)
                        for item in answered:
                            prediction = predictions.of_item[item.id]
                            mask = frame_of(prediction, n, len(truth.frames), height, width, where)
                            archive.writestr(zipfile.ZipInfo(f"{top}{item.id}/{name}.png", _DATE), _png(mask))
                except BadInput as error:
                    left_out[f"of {opened.benchmark.units} that cannot be read: {error.what}"] += len(answered)
                    continue
                items += [(asked, item) for item in answered]
            if not items:
                met = f"{len(predictions.of_item):,} predictions, none of {opened.benchmark.name} {opened.split}"
                raise UserError("nothing to hand in", where=where, met=met, do="check --on and --split")
    except OSError as error:
        raise UserError("cannot be written", where=str(file), met=error.strerror or str(error)) from None
    return Scored(opened.benchmark, tuple(items), np.zeros((len(items), 0)), +left_out)


@contextmanager
def _new_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    """Yield a new zip, which is renamed to `file` at the end; an exception removes it.

    Its temporary name is always the same, so that the next run writes over what a killed one left. It is locked.

    Raises:
        UserError: another run writes it.
        OSError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.tmp")
    held = hold_lock(partial, exclusive=True)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            yield archive
        os.replace(partial, file)
    except BaseException:  # after the renaming, the name may be that of another run's file
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(held)


def _png(mask: Bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * _WHITE).save(buffer, "PNG")
    return buffer.getvalue()
