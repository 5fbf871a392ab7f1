"""Answers of a model about every object of shard sets, as a parquet file for each that `cli.py join` takes.

Samples are split into fixed groups. A process claims a group, asks the model, and appends a line for each sample to a
file that all processes share; so what is said of an object does not depend on the processes, nor on a kill. When all
samples have a line, the parquet file is written whole.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from evaluation.appended import AppendedFile, Claims
from evaluation.evaluate import process_state
from evaluation.items import (
    NO_OBJECT,
    DecodedSample,
    Reads,
    SampleRef,
    group_samples,
    make_batches,
    read_groups,
)
from evaluation.published.answering import check_settings, digest_of
from evaluation.published.predictions import RUN
from inference.loading import load
from inference.pictures import write_json
from inference.recipes import explain_shards
from shards.atomic import atomic_parquet
from shards.errors import UserError
from shards.extras import extra
from shards.output_folder import make_output_folder
from shards.printable import printable
from shards.program import command
from shards.reader import ShardSet
from shards.remote import open_set
from shards.sets import find_sets
from shards.storage.cache import Cache
from shards.strict_json import parse_json
from shards.table_kind import arrow_schema
from trainer.config import Config, with_values
from trainer.data.batch import PairBatch, required
from trainer.data.decoding import Need
from trainer.data.loader import check_recipe
from trainer.data.selection import Selection, lines_of, select
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.objectives.dual import Dual
from trainer.objectives.judging import first_texts
from trainer.objectives.metrics import mask_metrics
from trainer.objectives.passes import Passes
from trainer.processes import missing_processes, start

What = Literal["captions", "masks-iou", "embeddings"]
Values = dict[str, Any]
"""Values of an object by the name of their column; a list of texts' IoUs, or a vector of float32 as `_packed`."""

_LINES = "samples.jsonl"
_CLAIMS = ".claims"
_META = b"sa2va-shards-annotate"
_PAUSE = 0.5  # seconds between looks at groups that other processes work on
_ROW_GROUP = 1 << 16  # most rows
_GROUP_BYTES = 64 << 20  # of the lines of a row group


class _Annotator(ABC):
    """One kind of what a model says."""

    reads: ClassVar[str | type[Reads]]
    """As of `evaluation.items.read_groups`."""
    columns: ClassVar[Mapping[str, str]]
    """Types of the columns beside key and object."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    @abstractmethod
    def values(self, batch: PairBatch) -> list[Values]:
        """Return the values of each item of a batch."""

    @staticmethod
    def merged(of_items: list[Values]) -> Values:
        """Return the values of an object from those of its items."""
        (values,) = of_items
        return values


class _Captions(_Annotator):
    """A caption of the region, and what it is worth."""

    reads = "dual"
    columns: ClassVar = {
        **{"frame": "int32", "mask_frame": "int32", "caption": "string"},
        **dict.fromkeys(("logprob", "logprob_sum", "cycle_iou", "swap_gap"), "double"),
    }

    def values(self, batch: PairBatch) -> list[Values]:
        cycle = Dual(self.passes).cycle(batch, IMAGE_SIZE)
        columns: dict[str, Sequence[Any]] = {
            "frame": _frames(batch, 0),
            "mask_frame": _frames(batch, 1),
            "caption": cycle.captions,
            "logprob": _floats(cycle.log_probability / cycle.tokens),
            "logprob_sum": _floats(cycle.log_probability),
            "cycle_iou": _floats(cycle.values["iou"]),
            "swap_gap": _floats(cycle.values["swap_gap"]),
        }
        return _by_item(columns)


class _MaskReads:
    """The first frame that shows an object, else the first one, and its mask there, for each text."""

    judging_fields: ClassVar[tuple[str, ...]] = ("pixel_values1", "g_pixel_values1", "masks1")
    needs: ClassVar[Need | None] = "texts"
    swaps_captions: ClassVar[bool] = False


class _MasksIou(_Annotator):
    """IoU of the masks that the model makes for the object's own texts."""

    reads = _MaskReads
    columns: ClassVar = {"frame": "int32", "iou": "double", "ious": "list<double>"}

    def values(self, batch: PairBatch) -> list[Values]:
        logits, _, _ = self.passes.segment_texts(batch, first_texts(batch), None)
        iou = mask_metrics(logits, required(batch.frames[0].masks), IMAGE_SIZE)["iou"]
        return _by_item({"frame": _frames(batch, 0), "iou": _floats(iou)})

    @staticmethod
    def merged(of_items: list[Values]) -> Values:
        ious = [values["iou"] for values in of_items]
        return {"frame": of_items[0]["frame"], "iou": math.fsum(ious) / len(ious), "ious": ious}


class _RegionReads:
    """The first frame that shows an object."""

    judging_fields: ClassVar[tuple[str, ...]] = ("pixel_values1", "prompt_masks1")
    needs: ClassVar[Need | None] = "regions"
    swaps_captions: ClassVar[bool] = False


class _Embeddings(_Annotator):
    """The mean of a region's visual tokens, as the language model reads them."""

    reads = _RegionReads
    columns: ClassVar = {"frame": "int32", "embedding": "list<float>"}

    def values(self, batch: PairBatch) -> list[Values]:
        tokens = self.passes.model.mlp1(self.passes.encode_image(batch.frames[0])).float()
        cells = required(batch.frames[0].prompt_masks).flatten(1).to(tokens)
        of_object = tokens[batch.image_of_object.to(tokens.device)]
        means = (cells[:, :, None] * of_object).sum(1) / cells.sum(1, keepdim=True)
        vectors = [_packed(vector) for vector in means.cpu().numpy()]
        return _by_item({"frame": _frames(batch, 0), "embedding": vectors})


_ANNOTATORS: dict[str, type[_Annotator]] = {
    "captions": _Captions,
    "masks-iou": _MasksIou,
    "embeddings": _Embeddings,
}


def _frames(batch: PairBatch, which: int) -> list[int]:
    """Return the frame of each object that is frame 1 or 2 (`which` 0 or 1), from 0."""
    return [batch.frame_numbers[image][which] - 1 for image in batch.image_of_object.tolist()]


def _floats(values: Tensor) -> list[float | None]:
    """Return numbers, and None for those that are none (NaN)."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _by_item(columns: Mapping[str, Sequence[Any]]) -> list[Values]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _packed(vector: NDArray[np.float32]) -> str:
    """Return a vector as base64 of its bytes, little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


@dataclass(frozen=True)
class _Target:
    """A set, and the file that is written of it."""

    path: str
    """The set's folder or URL, as it was given or found."""
    shards: ShardSet
    selection: Selection | None
    """The chosen objects; None: all."""
    out: Path


def annotate(
    model: str,
    shards: Sequence[str],
    what: What,
    out: Path,
    *,
    where: str | None = None,
    batch_size: int = 8,
    max_caption_tokens: int = 64,
    device: str | None = None,
    dtype: str | None = None,
    cache: Cache | None = None,
) -> str | None:
    """Write what a model says of each object of some sets, with key and number of the object: a file for each set.

    Any number of processes work together, and the same call goes on after a kill. What is done of a set lies in a
    folder beside its file, FILE.partial, until the file is written.

    Args:
        model: as in `evaluation.evaluate`.
        shards: folders of shard sets, or their URLs; see `shards.sets.find_sets`.
        what: captions, with the IoU of the mask made from each; the IoU of masks made from the object's own texts; or
            mean visual tokens.
        out: the parquet file; of several sets, the folder in which each has a file of its name, such as sav.parquet.
        where: a condition that chooses objects; see `shards.where`.
        batch_size: objects per batch, and samples per group. It decides which objects' captions are swapped.
        max_caption_tokens: most tokens of a caption.
        device: as in `inference.loading.load`; each of several processes has its own.
        dtype: as in `inference.loading.load`.
        cache: the cache for sets at URLs.

    Returns:
        A line for each set that says what was written; None on all processes but the first.

    Raises:
        UserError: two sets of one name, or one that does not fit the model; of one nothing is chosen; a file, or what
            lies beside it, is of another call; what `load` raises.
    """
    with extra("pipeline", where="annotate"):
        import pyarrow  # noqa: F401
    if what not in _ANNOTATORS:
        raise UserError("nothing of this kind", where="--what", met=what, wanted=" or ".join(get_args(What)))
    targets = _open(shards, out, where, cache)
    if processes := missing_processes():
        start(processes)
        return None
    state = process_state(device)
    loaded = load(model, str(state.device) if state.num_processes > 1 else device, dtype)
    if state.is_main_process:
        notes = [*dict.fromkeys(explain_shards(loaded, target.shards.recipe) for target in targets)]
        notes += lines_of([t.shards for t in targets], [t.selection for t in targets], where)
        print(*map(printable, notes), sep="\n", file=sys.stderr)
    loaded.model.eval().grounding_encoder.float()  # as in evaluation
    settings = {
        "what": what,
        "where": where,
        "batch_size": batch_size,
        "max_caption_tokens": max_caption_tokens if what == "captions" else None,
        "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
        "model_digest": digest_of(loaded.model),
    }
    config = with_values(Config(), {"max_caption_tokens": max_caption_tokens})
    annotator = _ANNOTATORS[what](Passes(loaded.model, config))
    lines = [_annotate_set(target, annotator, settings, batch_size, state) for target in targets]
    is_main = state.is_main_process
    state.destroy_process_group()
    return "\n".join(lines) if is_main else None


def _open(paths: Sequence[str], out: Path, where: str | None, cache: Cache | None) -> list[_Target]:
    """Open the sets, and check each against the model's sizes and the condition."""
    found = find_sets(paths, cache)
    names = [Path(path).resolve().name for path in found]
    for number, name in enumerate(names):
        if name in names[:number]:
            met = f"{found[names.index(name)]} and {found[number]}"
            do = "annotate each by a command of its own"
            raise UserError("two sets of one name, which is that of their files", where="--shards", met=met, do=do)
    if len(found) > 1:
        make_output_folder(out)
    elif not out.absolute().parent.is_dir():
        raise UserError("no such folder", where=str(out), do="make it, or give another --out")
    targets = []
    for path, name in zip(found, names, strict=True):
        opened = open_set(path, cache)
        if not opened.manifest.objects:
            raise UserError("nothing to annotate", where=path, met="a set without objects")
        check_recipe(opened.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
        selection = select(opened, where)
        if selection is not None and not selection.samples.any():
            raise UserError("no object is chosen", where=path, met=f"where {where}")
        targets.append(_Target(path, opened, selection, out / f"{name}.parquet" if len(found) > 1 else out))
    return targets


def _annotate_set(
    target: _Target, annotator: _Annotator, settings: Mapping[str, Any], batch_size: int, state: PartialState
) -> str:
    """Write the file of a set, unless it is there; return what was written."""
    chosen = target.selection.chosen if target.selection else None
    settings = {
        **settings,
        "set": target.shards.manifest.checksum,
        "tables": dict(chosen.tables) if chosen else {},
    }
    out = target.out
    work = _Work(target.shards, target.selection, annotator, batch_size)
    folder = out.with_name(f"{out.name}.partial")
    text = f"{out}: up to date"
    if not _is_written(out, settings):
        _prepare(folder, settings)
        file = work.run(folder, state.is_main_process)
        state.wait_for_everyone()
        if state.is_main_process:
            text = (
                f"{work.write(file, out, settings)}; put it beside the set with {command(f'join {target.path} {out}')}"
            )
        file.close()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    return text


def _is_written(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `out` is there, written by the same call; raises `UserError` where another file has its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.exists():
        return False
    try:
        if json.loads((pq.read_schema(out).metadata or {})[_META]) == settings:
            return True
    except (pa.ArrowException, OSError, ValueError, KeyError):
        pass
    raise UserError("another file", where=str(out), wanted="what this call writes, or none", do="give another --out")


def _prepare(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of unfinished work, or check that what it holds was made with these settings."""
    folder.mkdir(exist_ok=True)
    check_settings(folder, settings)
    if not (folder / RUN).exists():
        write_json(folder / RUN, settings)


@dataclass(frozen=True)
class _Line:
    """Values of the objects of a sample."""

    sample: int
    """Its position in the set."""
    rows: list[Values]
    """Values of its objects, each with its number as `object`."""
    left_out: dict[str, int]
    """Number of chosen objects without a row, by reason."""


class _Lines(AppendedFile[_Line]):
    """The file that processes share: a line for each sample."""

    def __init__(self, path: Path, samples: int) -> None:
        self.places = np.full((samples, 2), -1)
        """(samples, 2) int64: where the line of each sample begins, and its length; -1 without one."""
        self.count = 0
        """Number of samples with a line."""
        super().__init__(path)

    def parse(self, line: bytes, where: str) -> _Line:
        try:
            values = parse_json(line)
            found = _Line(values["sample"], values["rows"], values["left_out"])
            if 0 <= found.sample < len(self.places) and all(type(row["object"]) is int for row in found.rows):
                return found
            fault = f"sample {found.sample}"
        except (ValueError, KeyError, TypeError) as error:
            fault = str(error)
        raise UserError("not a line of an annotation", where=where, met=fault[:80], do="remove the folder")

    def to_bytes(self, line: _Line) -> bytes:
        return json.dumps(vars(line), allow_nan=False).encode("ascii") + b"\n"

    def note(self, line: _Line, begin: int, length: int) -> None:
        if not self.is_noted(line):
            self.places[line.sample] = begin, length
            self.count += 1

    def is_noted(self, line: _Line) -> bool:
        return self.has(line.sample)

    def has(self, sample: int) -> bool:
        """Whether a sample has a line."""
        return bool(self.places[sample, 0] >= 0)

    def of(self, sample: int) -> _Line:
        """Return the line of a sample that has one."""
        begin, length = self.places[sample].tolist()
        return self.parse(self.read(begin, length), str(self.path))


class _Work:
    """The chosen objects of a set, and how they are annotated."""

    def __init__(self, shards: ShardSet, selection: Selection | None, annotator: _Annotator, batch_size: int) -> None:
        self._shards = shards
        self._selections = {} if selection is None else {shards: selection}
        self._annotator = annotator
        self._batch_size = batch_size
        self._samples = np.arange(len(shards)) if selection is None else np.flatnonzero(selection.samples)
        self._groups = group_samples([(shards, int(position)) for position in self._samples], batch_size)

    @torch.no_grad()
    def run(self, folder: Path, shown: bool) -> _Lines:
        """Annotate what no process has annotated; return the file once it has a line for each sample."""
        file = _Lines(folder / _LINES, len(self._shards))
        claims = Claims(folder / _CLAIMS)
        model = self._annotator.passes.model
        half = model.embedding.weight.dtype == torch.bfloat16
        options: dict[str, Any] = {"unit": "sample", "disable": not shown, "mininterval": 0.5}
        name = printable(self._shards.folder.name)
        bar = tqdm(total=len(self._samples), initial=file.count, desc=name, **options)
        try:
            with bar, torch.autocast(model.device.type, torch.bfloat16, enabled=half):
                left: Sequence[int] = range(len(self._groups))
                while left:
                    busy: list[int] = []
                    held: deque[tuple[int, ExitStack]] = deque()
                    groups = self._claimed(left, claims, file, busy, held)
                    for samples in read_groups(groups, self._annotator.reads, self._selections):
                        number, claim = held.popleft()
                        file.append(self._annotate(self._groups[number], samples))
                        claim.close()
                        bar.update(file.count - bar.n)
                    if len(busy) == len(left):
                        time.sleep(_PAUSE)
                    file.refresh()
                    bar.update(file.count - bar.n)
                    left = [number for number in busy if self._is_missing(number, file)]
        finally:
            claims.close()
        return file

    def _is_missing(self, number: int, file: _Lines) -> bool:
        return not all(file.has(position) for _, position in self._groups[number])

    def _claimed(
        self,
        numbers: Sequence[int],
        claims: Claims,
        file: _Lines,
        busy: list[int],
        held: deque[tuple[int, ExitStack]],
    ) -> Iterator[Sequence[SampleRef]]:
        """Yield the groups that no process has claimed or annotated; their claims go into `held`, others into `busy`.

        A group is claimed when it is to be decoded, which is a few groups before it is annotated.
        """
        for number in numbers:
            if not self._is_missing(number, file):
                continue
            stack = ExitStack()
            if not stack.enter_context(claims.claim(number)):
                busy.append(number)
                continue
            file.refresh()
            if self._is_missing(number, file):
                held.append((number, stack))
                yield self._groups[number]
            else:
                stack.close()

    def _annotate(self, group: Sequence[SampleRef], samples: Sequence[DecodedSample]) -> list[_Line]:
        """Return a line for each sample of a group."""
        found: dict[str, dict[int, list[Values]]] = {sample.key: {} for sample in samples}
        model = self._annotator.passes.model
        for batch, _ in make_batches(samples, self._annotator.reads, self._batch_size):
            keys = [batch.keys[image] for image in batch.image_of_object.tolist()]
            of_items = self._annotator.values(batch.to(model.device))
            for key, number, values in zip(keys, batch.objects, of_items, strict=True):
                found[key].setdefault(number, []).append(values)
        lines = []
        for (_, position), sample in zip(group, samples, strict=True):
            of_object = sorted(found[sample.key].items())
            rows = [{"object": number, **self._annotator.merged(values)} for number, values in of_object]
            left_out = {reason: count for reason, count in sample.left_out.items() if reason != NO_OBJECT}
            lines.append(_Line(position, rows, left_out))
        return lines

    def write(self, file: _Lines, out: Path, settings: Mapping[str, Any]) -> str:
        """Write the parquet file from the lines of all samples, in the set's order; return what was written."""
        import pyarrow as pa

        columns = {"key": "string", "object": "int32", **self._annotator.columns}
        schema = arrow_schema(columns).with_metadata({_META: json.dumps(settings, sort_keys=True)})
        written = 0
        left_out = Counter[str]()
        try:
            with atomic_parquet(out.absolute(), schema) as writer:
                for rows, left in self._parts(file):
                    writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=_ROW_GROUP)
                    written += len(rows)
                    left_out += left
        except OSError as error:
            raise UserError("cannot write", where=str(out), met=str(error.strerror or error)) from None
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        lost = f"; left out: {reasons}" if reasons else ""
        return f"{out}: {written:,} of {written + left_out.total():,} objects{lost}"

    def _parts(self, file: _Lines) -> Iterator[tuple[list[Values], Counter[str]]]:
        """Yield the rows of some samples at a time, in the set's order, with what was left out of them."""
        rows: list[Values] = []
        left_out = Counter[str]()
        size = 0
        vectors = [name for name, kind in self._annotator.columns.items() if kind == "list<float>"]
        for position in self._samples.tolist():
            line = file.of(position)
            for row in line.rows:
                row |= {name: np.frombuffer(base64.b64decode(row[name]), "<f4") for name in vectors}
                rows.append({"key": self._shards.key(position), **row})
            left_out.update(line.left_out)
            size += int(file.places[position, 1])
            if len(rows) >= _ROW_GROUP or size >= _GROUP_BYTES:
                yield rows, left_out
                rows, left_out, size = [], Counter(), 0
        yield rows, left_out
