"""Answer the items of a benchmark with a model, in any number of processes; each item once, after any kill.

Pictures are put into groups: of one number of tiles, with a batch of items or more; a video is a group by itself. A
process claims a group, answers its items, and appends the answers that the file does not hold yet. So answers do not
depend on which process gave them, nor on what was answered before a kill.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from tqdm import tqdm

from evaluation.appended import Claims
from evaluation.published.datasets import Asked, OpenBenchmark
from evaluation.published.predictions import FILE, RUN, PredictionFile
from inference import tiles
from inference.pictures import write_json
from inference.predictor import Predictor
from shards.errors import BadInput, UserError
from shards.strict_json import parse_json
from trainer.fsdp import host_copy

_CLAIMS = ".claims"
_PAUSE = 0.5  # seconds between looks at groups that other processes answer


@dataclass(frozen=True)
class Work:
    """What one process did of a benchmark."""

    answered: int
    """Items that this process answered."""
    seconds: float
    unread: Mapping[str, BadInput]
    """Path of each picture or video that could not be read, with the reason."""
    peak_memory: int
    """Bytes: of the GPU if the model is on one, else of the process."""


def answer(
    opened: OpenBenchmark,
    folder: Path,
    load: Callable[[], Predictor],
    settings: Mapping[str, Any],
    batch_size: int,
    most_tiles: int,
    shown: bool = True,
) -> Work:
    """Answer all items that `folder` holds no answer to; return when all are answered, by whichever process.

    Args:
        folder: exists; gets predictions.jsonl and run.json.
        load: loads the model; it is called only where something is to be done.
        settings: what decides the answers, beside the model with its dtype and recipe.
        batch_size: questions that are answered at once.
        most_tiles: most tiles of a picture.
        shown: whether progress is shown.

    Raises:
        UserError: the folder holds answers of another model or of other settings.
    """
    groups: list[tuple[Asked, ...]] = [(one,) for one in opened.asked]
    if opened.benchmark.batched:
        groups = make_groups(opened.asked, batch_size, most_tiles)
    file = PredictionFile(folder / FILE)
    claims = Claims(folder / _CLAIMS)
    started = time.monotonic()
    work = _Worker(opened, file, load, folder, settings, batch_size)
    try:
        with tqdm(total=opened.items, initial=_known(opened, file), unit="item", disable=not shown) as bar:
            bar.set_description(f"{opened.benchmark.name} {opened.split}")
            left = [*range(len(groups))]
            while left:
                busy = []
                for number in left:
                    with claims.claim(number) as free:
                        if not free:
                            busy.append(number)
                            continue
                        file.refresh()
                        work.answer(groups[number])
                    bar.update(_known(opened, file) - bar.n)
                if len(busy) == len(left):
                    time.sleep(_PAUSE)
                file.refresh()
                left = [number for number in busy if work.missing(groups[number])]
            bar.update(_known(opened, file) - bar.n)
    finally:
        file.close()
        claims.close()
    return Work(work.answered, time.monotonic() - started, work.unread, _peak_memory(work.device))


def make_groups(pictures: Sequence[Asked], batch_size: int, most_tiles: int) -> list[tuple[Asked, ...]]:
    """Return the pictures in groups of one number of tiles, each but the last of a number with a batch of items."""
    of_count: dict[int, list[Asked]] = {}
    for picture in pictures:
        height, width = picture.size or (1, 1)
        columns, rows = tiles.grid(width, height, most_tiles)
        of_count.setdefault(columns * rows, []).append(picture)
    groups = []
    for count in sorted(of_count):
        group: list[Asked] = []
        for picture in of_count[count]:
            group.append(picture)
            if sum(len(one.items) for one in group) >= batch_size:
                groups.append(tuple(group))
                group = []
        if group:
            groups.append(tuple(group))
    return groups


class _Worker:
    """Answers groups, with a model that is loaded for the first of them."""

    def __init__(
        self,
        opened: OpenBenchmark,
        file: PredictionFile,
        load: Callable[[], Predictor],
        folder: Path,
        settings: Mapping[str, Any],
        batch_size: int,
    ) -> None:
        self.answered = 0
        self.unread: dict[str, BadInput] = {}
        self.device = torch.device("cpu")
        self._opened = opened
        self._file = file
        self._load = load
        self._folder = folder
        self._settings = settings
        self._batch_size = batch_size
        self._predictor: Predictor | None = None

    def missing(self, group: Sequence[Asked]) -> list[Asked]:
        """Return the pictures or videos of a group that can be read and have an item without an answer."""
        readable = [picture for picture in group if picture.path not in self.unread]
        return [one for one in readable if any(item.id not in self._file.answered for item in one.items)]

    def answer(self, group: Sequence[Asked]) -> None:
        """Answer a group, unless all of it is answered; append what is new."""
        if not self.missing(group):
            return
        truths: list[tuple[Asked, Any]] = []
        for picture in group:
            try:
                truths.append((picture, self._opened.read(picture)))
            except BadInput as error:
                self.unread[picture.path] = error
        if not self.missing(group):
            return
        if self._predictor is None:
            self._predictor = self._load()
            self.device = self._predictor.model.device
            of_family = self._opened.benchmark.settings(self._predictor)
            known = {**self._settings, **_made_by(self._predictor), **of_family}
            check_settings(self._folder, known)
            if not (self._folder / RUN).exists():
                write_json(self._folder / RUN, known)
        before = len(self._file.answered)
        try:
            for made in self._opened.benchmark.answer(self._predictor, truths, self._batch_size, self._file.answered):
                self._file.append(made)
        except BadInput as error:  # a frame of a video that cannot be decoded
            self.unread.update((asked.path, error) for asked, _ in truths)
        self.answered += len(self._file.answered) - before


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that the answers in a folder were made with these settings; nothing is checked in a new folder.

    Raises:
        UserError: they were made in another way, or nobody knows how; it names what differs.
    """
    file = folder / RUN
    do = "give another --out"
    if not file.exists():
        answers = folder / FILE
        if answers.exists() and answers.stat().st_size:
            raise UserError("answers of an unknown model", where=str(folder), met=f"no {RUN}", do=do)
        return
    try:
        stored = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError("not a run's settings", where=str(file), met=str(error), do=do) from None
    known = stored if isinstance(stored, dict) else {}
    differing = [key for key in settings if known.get(key) != settings[key]]
    if differing:
        met, wanted = (", ".join(f"{key} {values.get(key)}" for key in differing) for values in (known, settings))
        raise UserError("answers of another run", where=str(folder), met=met, wanted=wanted, do=do)


def _made_by(predictor: Predictor) -> dict[str, str]:
    return {
        "recipe": predictor.recipe.digest,
        "dtype": str(predictor.model.embedding.weight.dtype).removeprefix("torch."),
        "model_digest": digest_of(predictor.model),
    }


def digest_of(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, dtypes, shapes and bytes, in the order of the names.

    The tensors are those of `state_dict`, which itself would shard the parameters of a training (FSDP) again.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for place, module in model.named_modules(remove_duplicate=False):
        own = dict(module.named_buffers(recurse=False)).items()
        tensors |= {f"{place}.{n}".strip("."): b for n, b in own if n not in module._non_persistent_buffers_set}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        for part in _plain(tensor):
            digest.update(f"{name} {part.dtype} {[*part.shape]}".encode())
            digest.update(host_copy(part).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a quantised tensor consists of; a plain one by itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [part for one in inner for part in _plain(one)]


def _known(opened: OpenBenchmark, file: PredictionFile) -> int:
    return sum(item.id in file.answered for asked in opened.asked for item in asked.items)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
