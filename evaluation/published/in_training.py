"""Published benchmarks of a model in training: what `trainer/measure/benchmarks.py` calls.

The trainer imports nothing of this folder. It names `Opened`, and hands over a model and a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.published.answering import answer
from evaluation.published.datasets import OpenBenchmark, opened
from evaluation.published.datasets.dlc_bench import DlcBench
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.predictions import FILE
from evaluation.published.run import RESULTS, Asking, is_first_process, measure, settings_of
from inference.predictor import Predictor
from shards.errors import UserError
from shards.output_folder import make_output_folder
from shards.strict_json import parse_json
from trainer.released.loaded import LoadedModel

if TYPE_CHECKING:
    from trainer.config import BenchmarkConfig


class Opened:
    """Benchmarks whose data is found, until they are closed.

    Args:
        entries: what a training's configuration asks for.
        answer_tokens: most tokens of an answer.

    Raises:
        UserError: no such benchmark, split or data; one without public truth, or that needs a judge, or listed twice.
    """

    def __init__(self, entries: Sequence[BenchmarkConfig], answer_tokens: int) -> None:
        self._answer_tokens = answer_tokens
        self._found: dict[str, tuple[OpenBenchmark, BenchmarkConfig]] = {}
        with ExitStack() as stack:
            for number, entry in enumerate(entries):
                where = f"eval.benchmarks[{number}]"
                found = _open(entry, where, stack)
                name = f"{entry.on}-{found.split}"
                if name in self._found:
                    raise UserError("listed twice", where=where, met=name)
                self._found[name] = (found, entry)
            self._stack = stack.pop_all()

    def answer(self, loaded: LoadedModel, folder: Path, half: bool, frames: int | None) -> None:
        """Answer all items, together with the other processes; arguments as in `trainer.measure.benchmarks`."""
        for name, (found, entry) in self._found.items():
            predictor = Predictor(loaded, most_tiles=entry.tiles, max_new_tokens=self._answer_tokens)
            predictor.autocast |= half
            if frames is not None:
                predictor.video_frames = "uniform"
                predictor.frames_seen = frames
            asking = Asking("", entry.tiles, self._answer_tokens)
            asked = found.first(entry.limit)
            settings = settings_of(asked, asking)
            make_output_folder(folder / name)
            load = partial(_same, predictor)
            answer(asked, folder / name, load, settings, asking.batch_size, entry.tiles, is_first_process())

    def measure(self, folder: Path) -> dict[str, float]:
        """Return the measures of the answers in a folder by name, such as refcoco-val/cIoU; and write their pages.

        Raises:
            UserError: a benchmark has no measure, as where a package is missing.
        """
        values: dict[str, float] = {}
        for name, (found, entry) in self._found.items():
            place = folder / name
            measure(found, place, place / FILE, entry.limit)
            results = parse_json((place / RESULTS).read_bytes())
            known = {f"{name}/{key}": value for key, value in results["measures"].items() if value is not None}
            if not known:
                do = "mend that, or leave it out of eval.benchmarks"
                raise UserError("nothing is measured", where=name, met="; ".join(results["notes"]), do=do)
            values |= known
        return values

    def close(self) -> None:
        """Close the data."""
        self._stack.close()


def _same(predictor: Predictor) -> Predictor:
    return predictor


def _open(entry: BenchmarkConfig, where: str, stack: ExitStack) -> OpenBenchmark:
    if entry.on not in BENCHMARKS:
        raise UserError("no such benchmark", where=f"{where}.on", met=entry.on, wanted=" or ".join(BENCHMARKS))
    benchmark = BENCHMARKS[entry.on]
    if isinstance(benchmark, DlcBench):
        do = "measure a checkpoint with cli.py benchmark --judge"
        raise UserError("a judge is not asked during a training", where=f"{where}.on", met=entry.on, do=do)
    split = entry.split or next(iter(benchmark.published))
    if split in benchmark.hidden:
        raise UserError("the truth of this split is not public", where=f"{where}.split", met=f"{entry.on}, {split}")
    try:
        return stack.enter_context(opened(benchmark, Path(entry.root), split))
    except UserError as error:
        place = f"{where}: {error.where}" if error.where else where
        raise UserError(error.what, where=place, met=error.met, wanted=error.wanted, do=error.do) from None
