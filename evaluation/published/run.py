"""Run benchmarks: answer with a model, or take predictions as they are; measure, and write table, results and page."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.published.datasets import OpenBenchmark, Options, opened
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.predictions import FILE, RUN, read_predictions
from evaluation.published.report import Answered, worst_best_random, write_page
from evaluation.published.scoring import Scored, counted, notes_of, percent, score, table_of, with_whole
from evaluation.published.submission import SUBMISSION, write_submission
from inference.pictures import write_json
from shards.errors import UserError
from shards.output_folder import make_output_folder
from shards.printable import printable
from shards.recipe import named_recipe
from shards.strict_json import parse_json

if TYPE_CHECKING:
    from evaluation.published.answering import Work
    from inference.predictor import Predictor

ALL = "all"
RESULTS = "results.json"
REPORT = "report.html"
_PLAIN = Options()
_PACKAGES = ("sa2va-shards", "torch", "transformers", "numpy", "pycocotools")


@dataclass(frozen=True)
class Asking:
    """How a model is asked."""

    model: str
    tiles: int = 12
    max_new_tokens: int = 2048
    recipe: str | None = None
    """None: the model's own."""
    official_normalisation: bool = False
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 8
    video_frames: str | None = None
    """None: as the model's folder says."""
    propagate: str | None = None
    """None: as `Predictor` decides."""
    sam2: Path | None = None
    """SAM 2's checkpoint, for a model without SAM 2's own mask decoder."""


def benchmark(
    names: Sequence[str],
    root: Path,
    out: Path,
    *,
    split: str | None = None,
    asking: Asking | None = None,
    predictions: Path | None = None,
    limit: int | None = None,
    options: Options = _PLAIN,
) -> Iterator[str]:
    """Measure a model, or predictions, on benchmarks; yield the table of each.

    Args:
        names: keys of `BENCHMARKS`; or "all" alone, for those whose data is below the root.
        root: see `datasets.opened`.
        out: with a model, a folder that gets a folder NAME-SPLIT for each benchmark; else the folder of the results.
        split: None: each benchmark's first.
        asking: the model; None: measure `predictions`.
        limit: measure only the first items.
        options: of single benchmarks.

    Raises:
        UserError: not exactly one of a model and predictions; no such benchmark, split or data; what else is wrong.
    """
    if (asking is None) == (predictions is None):
        raise UserError("a model or predictions", wanted="exactly one of --model and --from")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if asking is not None and several and asking.device not in (None, "cpu"):
        do = "leave it out: each takes its own"
        raise UserError("one device for all processes", where="--device", met=asking.device, do=do)
    if asking is not None and asking.recipe is not None:
        named_recipe(asking.recipe)
    if asking is not None:
        from trainer.released.files import resolve

        resolve(asking.model, weights=False)  # before the raw data is read, which may take minutes
    with ExitStack() as stack:
        found = open_benchmarks(names, root, split, stack, options)
        if predictions is not None and len(found) > 1:
            met = ", ".join(one.benchmark.name for one in found)
            raise UserError("one benchmark for one file", where="--from", met=met, do="give one --on")
        shared: list[Predictor] = []
        for one in found:
            folder = out
            work = None
            if asking is not None:
                folder = out / f"{one.benchmark.name}-{one.split}"
                work = _answer(one.first(limit), folder, asking, shared)
            if is_first_process():
                yield measure(one, folder, predictions or folder / FILE, limit, asking, work)


def is_first_process() -> bool:
    """Whether this process measures and prints: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def open_benchmarks(
    names: Sequence[str], root: Path, split: str | None, stack: ExitStack, options: Options = _PLAIN
) -> list[OpenBenchmark]:
    """Open the benchmarks; all of them, so that what is missing is said before hours of work.

    Args:
        split: None: the first of each.
        stack: closes them.
        options: of single benchmarks.

    Raises:
        UserError: an unknown name; no such split or data; "all", and nothing is below the root.
    """
    unknown = [name for name in names if name not in (ALL, *BENCHMARKS)]
    if unknown or not names:
        wanted = " or ".join([*BENCHMARKS, ALL])
        raise UserError("no such benchmark", where="--on", met=", ".join(unknown), wanted=wanted)
    found = []
    for name in BENCHMARKS if ALL in names else dict.fromkeys(names):
        one = BENCHMARKS[name].with_options(options)
        try:
            split_found = stack.enter_context(opened(one, root, split or next(iter(one.published))))
            if ALL in names:
                _check_name(name, split_found.root)
            found.append(split_found)
        except UserError as error:
            if ALL not in names:
                raise
            if is_first_process():
                print(printable(f"not measured: {name}: {error}"), file=sys.stderr)
    if not found:
        raise UserError("no data of a benchmark", where=str(root), do="see docs/BENCHMARKS.md for what to download")
    return found


def _check_name(name: str, root: Path) -> None:
    """Tell Ref-DAVIS17 and Ref-YouTube-VOS apart, which have the same files: only the first has masks of `valid`.

    Raises:
        UserError: the folder is the other's.
    """
    has_masks = any((root / "valid" / name).exists() for name in ("Annotations", "mask_dict.pkl"))
    is_davis = has_masks and not (root / "meta_expressions" / "test").is_dir()
    other = "ref-youtube-vos" if name == "ref-davis" else "ref-davis"
    if (root / "meta_expressions").is_dir() and name == ("ref-youtube-vos" if is_davis else "ref-davis"):
        raise UserError("the folder looks like that of another dataset", where=str(root), met=other)


def _answer(found: OpenBenchmark, folder: Path, asking: Asking, shared: list[Predictor]) -> Work:
    """Answer a benchmark's items. `shared` holds the model, once it is loaded, for the next benchmark."""
    from evaluation.published.answering import answer, check_settings

    make_output_folder(folder)
    settings = settings_of(found, asking)
    check_settings(folder, settings)
    load = _loader(asking, shared)
    return answer(found, folder, load, settings, asking.batch_size, asking.tiles, shown=is_first_process())


def settings_of(found: OpenBenchmark, asking: Asking) -> dict[str, Any]:
    """Return what decides the answers, beside the model."""
    return {
        "benchmark": found.benchmark.name,
        "split": found.split,
        "questions": [*found.benchmark.questions],
        "tiles": asking.tiles,
        "max_new_tokens": asking.max_new_tokens,
        "official_normalisation": asking.official_normalisation,
    }


def _loader(asking: Asking, shared: list[Predictor]) -> Callable[[], Predictor]:
    def load() -> Predictor:
        import torch

        from inference.loading import load as load_model
        from inference.predictor import Predictor
        from inference.recipes import explain
        from trainer.released.folder import load_original_decoder

        if not shared:
            device = asking.device
            if device is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
                device = f"cuda:{os.environ['LOCAL_RANK']}"
            loaded = load_model(asking.model, device, asking.dtype)
            if asking.sam2 is not None:
                load_original_decoder(loaded.model, asking.sam2)
            recipe = None if asking.recipe is None else named_recipe(asking.recipe)
            if is_first_process():
                print(printable(explain(loaded, recipe)), file=sys.stderr)
            shared.append(
                Predictor(
                    loaded,
                    recipe=recipe,
                    most_tiles=asking.tiles,
                    max_new_tokens=asking.max_new_tokens,
                    official_normalisation=asking.official_normalisation,
                    video_frames=asking.video_frames,
                    propagate=asking.propagate,
                )
            )
        return shared[0]

    return load


def measure(
    found: OpenBenchmark,
    folder: Path,
    where: Path,
    limit: int | None,
    asking: Asking | None = None,
    work: Work | None = None,
) -> str:
    """Measure predictions, or make a submission of them; write results and page, and return the table."""
    predictions = read_predictions(where)
    limited = limit is not None and limit < found.items
    make_output_folder(folder)
    prepared, more = found.benchmark.prepare(found.first(limit), predictions.of_item, folder)
    found = replace(found, benchmark=prepared, notes=(*found.notes, *more))
    hidden = found.split in found.benchmark.hidden
    if hidden:
        scored = write_submission(found.first(limit), predictions, folder / SUBMISSION, str(where))
    else:
        shown = found.first(limit)
        scored = with_whole(score(shown, predictions, str(where)), shown, predictions)
    counts = counted(found, scored, predictions)
    notes = notes_of(counts, limited, found.notes)
    if asking is not None and work is not None:
        notes.append(_said(work))
    title = f"{found.benchmark.name}, {found.split}: {asking.model if asking else where}"
    write_json(folder / RESULTS, _results(found, scored, counts, notes, where, limit, asking, work))
    if hidden:
        return table_of(title, scored, [*notes, f"to hand in: {folder / SUBMISSION}"])
    if not scored.numbers.shape[1]:
        return table_of(title, scored, notes)
    answered = Answered("", predictions.of_item, scored, str(where))
    cells = [f"{len(scored.items):,}", *map(percent, scored.values.values())]
    sections = worst_best_random(scored)
    write_page(folder / REPORT, title, found, [answered], sections, ["items", *scored.values], [("", cells)], notes)
    return table_of(title, scored, [*notes, f"see {folder / REPORT}"])


def _said(work: Work) -> str:
    rate = f", {work.answered / work.seconds:.2f} items/s" if work.answered else ""
    memory = f"peak memory {work.peak_memory / 1e9:.2f} GB"
    return f"answered by this process: {work.answered:,} items in {work.seconds:.0f} s{rate}; {memory}"


def _results(
    found: OpenBenchmark,
    scored: Scored,
    counts: Mapping[str, Any],
    notes: Sequence[str],
    where: Path,
    limit: int | None,
    asking: Asking | None,
    work: Work | None,
) -> dict[str, Any]:
    """Return the content of results.json: the measures, and all that decides them."""
    run = _run_of(where)
    return {
        "benchmark": found.benchmark.name,
        "split": found.split,
        "root": str(found.root.absolute()),
        "predictions": where.name,
        "measures": {name: None if value != value else value for name, value in scored.values.items()},
        "counts": dict(counts),
        "limit": limit,
        "notes": [*notes],
        "asked": None if asking is None else {**asdict(asking), "sam2": str(asking.sam2 or "") or None},
        "run": run,
        "peak_memory": None if work is None else work.peak_memory,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _run_of(predictions: Path) -> Any:
    """Return what the file beside the predictions says of the model that made them; None where there is none."""
    file = predictions.parent / RUN
    try:
        return parse_json(file.read_bytes()) if file.is_file() else None
    except ValueError as error:
        raise UserError("not a run's settings", where=str(file), met=str(error)) from None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
