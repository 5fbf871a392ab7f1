"""Predictions of an evaluation as lines that name their samples. `cli.py browse` shows them beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.published.predictions import Prediction, PredictionFile, encode
from shards.reader import ShardSet
from trainer.data.batch import Batch, ConversationBatch, PairBatch
from trainer.model.grounding import IMAGE_SIZE
from trainer.objectives import load_objective
from trainer.objectives.judging import Judged
from trainer.objectives.losses import logits_at, regular_points

_OF_OBJECTS = ("iou", "swap_gap", "caption")


class PredictedFile:
    """A file of the predictions of an evaluation, to which several processes append.

    Args:
        path: of the file.
        objective: a name in `trainer.objectives.OBJECTIVES`.
    """

    def __init__(self, path: Path, objective: str) -> None:
        self._file = PredictionFile(path)
        self._target = (load_objective(objective).target_frame or 1) - 1
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def add(self, shards: ShardSet, batch: Batch, judged: Judged) -> None:
        """Append what was predicted for a batch of a set's samples; nothing where no masks are predicted."""
        if judged.logits is None:
            return
        if isinstance(batch, ConversationBatch):
            found = self._of_rows(shards, batch, judged, judged.logits)
        else:
            assert isinstance(batch, PairBatch)
            found = self._of_objects(shards, batch, judged, judged.logits)
        self._file.append([*found])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _of_objects(self, shards: ShardSet, batch: PairBatch, judged: Judged, logits: Tensor) -> Iterator[Prediction]:
        for i, image in enumerate(batch.image_of_object.tolist()):
            frame = batch.frame_numbers[image][self._target]
            numbers = {name: float(judged.values[name][i]) for name in _OF_OBJECTS if name in judged.values}
            question = batch.texts[i][0] if batch.texts[i] else ""
            objects, key = [batch.objects[i]], batch.keys[image]
            yield self._prediction(shards, key, objects, frame, (question, judged.captions[i]), logits[i], numbers)

    def _of_rows(
        self, shards: ShardSet, batch: ConversationBatch, judged: Judged, logits: Tensor
    ) -> Iterator[Prediction]:
        places = judged.rows["bce"].tolist()  # by row, then by frame, then by [SEG]
        first = 0
        for row, talk in enumerate(batch.conversations):
            own = range(first, first + places.count(row))
            first = own.stop
            key = batch.keys[batch.sample_of_row[row]]
            for n, number in enumerate(own):
                target = talk.targets[n % len(talk.targets)]
                frame = talk.frames[n // len(talk.targets)] + 1
                numbers = {"iou": float(judged.values["iou"][number])}
                said = target.phrase, judged.captions[row]
                yield self._prediction(shards, key, [*target.objects], frame, said, logits[number], numbers)

    def _prediction(
        self,
        shards: ShardSet,
        key: str,
        objects: list[int],
        frame: int,
        said: tuple[str, str],
        logits: Tensor,
        numbers: dict[str, float],
    ) -> Prediction:
        """Return a prediction.

        Args:
            objects: whose union is the truth.
            frame: from 1.
            said: what was asked for, and what the model said.
            logits: (256, 256).
            numbers: metrics; NaN is left out.
        """
        name = shards.folder.resolve().name
        about: dict[str, Any] = {"set": name, "key": key, "objects": objects, "frame": frame}
        place = name, key, frame
        self._counts[place] += 1
        item = f"{name}/{key}/{frame}/{self._counts[place]}"
        kept = {metric: value for metric, value in numbers.items() if value == value}
        points = regular_points(1, IMAGE_SIZE, logits.device)  # where the metrics are counted
        mask = (logits_at(logits[None].float(), points) > 0).view(IMAGE_SIZE, IMAGE_SIZE).cpu().numpy()
        return Prediction(item, *said, (encode(mask),), kept, about)
