"""The verbs that make published measures: benchmark, compare."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from commands.options import BatchSize, Device, ModelDtype, Propagate, Sam2, VideoFrames
from commands.output import say
from shards.extras import extra

TextModel = Annotated[
    Path | None,
    Option(metavar="DIR", help="Folder of a text model, such as bert-base-uncased, for the recall of gcg."),
]
JudgeModel = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Name of the judge. Without --judge: whose verdicts beside the predictions count, where there are several."
        "  [default: meta-llama/Meta-Llama-3.1-8B-Instruct]",
    ),
]


@extra("train")
def benchmark(
    on: Annotated[
        list[str],
        Option(
            metavar="NAME",
            help="Benchmark: refcoco, refcoco+, refcocog, grefcoco, reasonseg, mevis, ref-davis, revos, ref-sav, "
            "ref-youtube-vos, gcg, region-caption, dlc-bench. Give several, each with --on; or all: those whose data "
            "is below --root.",
        ),
    ],
    root: Annotated[Path, Option(help="Folder of the raw data, as shard takes it.")],
    model: Annotated[
        str | None,
        Option(metavar="DIR", help="Folder of a Sa2VA, released or exported, or of a run; or OWNER/NAME on the hub."),
    ] = None,
    from_file: Annotated[
        Path | None, Option("--from", metavar="FILE", help="Measure these predictions instead of a model.")
    ] = None,
    split: Annotated[str | None, Option(help="Split of the benchmark.  [default: val, valid or valid_u]")] = None,
    out: Annotated[
        Path | None,
        Option(
            help="Folder for predictions, results and pages.  [default: runs/benchmark; with --from, the file's folder]"
        ),
    ] = None,
    tiles: Annotated[int, Option(min=1, max=12, help="Most tiles of a picture, as in predict.")] = 12,
    limit: Annotated[int | None, Option(min=1, help="Ask only the first N items.")] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 2048,
    recipe: Annotated[str | None, Option(help="As in predict: sa2va or default.  [default: the model's own]")] = None,
    official_normalisation: Annotated[
        bool,
        Option("--official-normalisation", help="Round SAM 2's mean and std to bfloat16, as in official code."),
    ] = False,
    text_model: TextModel = None,
    judge: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="OpenAI-compatible address of the language model that judges dlc-bench, such as "
            "http://localhost:8000/v1. Its key, if it needs one, is in JUDGE_API_KEY. Without it nothing is sent.",
        ),
    ] = None,
    judge_model: JudgeModel = None,
    gcg_blanks: Annotated[
        bool, Option("--gcg-blanks", help="Ask gcg with the run of blanks that Sa2VA's script has in its question.")
    ] = False,
    video_frames: VideoFrames = None,
    propagate: Propagate = None,
    sam2: Sam2 = None,
    batch_size: BatchSize = 8,
    dtype: ModelDtype = None,
    device: Device = None,
) -> None:
    """Measure a Sa2VA, or the predictions of any program, as papers do.

    A run that was killed goes on when it is started again. Several processes share the work: accelerate launch
    --num_processes N -m cli benchmark, or the same command several times. docs/BENCHMARKS.md has the details.
    """
    from evaluation.published.datasets import Options
    from evaluation.published.judge import KEY_VARIABLE, MODEL, Judge
    from evaluation.published.run import Asking, is_first_process
    from evaluation.published.run import benchmark as run

    asking = None
    if model is not None:
        from trainer.processes import missing_processes, start

        if processes := missing_processes():
            start(processes)
            return
        asking = Asking(model, tiles, max_new_tokens, recipe, official_normalisation, dtype, device, batch_size)
        asking = replace(asking, video_frames=video_frames, propagate=propagate, sam2=sam2)
    folder = out or (Path("runs/benchmark") if from_file is None else from_file.parent)
    asked = None if judge is None else Judge(judge, judge_model or MODEL, os.environ.get(KEY_VARIABLE))
    options = Options(text_model, gcg_blanks, asked, judge_model)
    for text in run(on, root, folder, split=split, asking=asking, predictions=from_file, limit=limit, options=options):
        if is_first_process():
            say(text)


@extra("train")
def compare(
    first: Annotated[Path, Argument(metavar="A", help="Predictions of a model.")],
    second: Annotated[Path, Argument(metavar="B", help="Predictions of another, for the same items.")],
    on: Annotated[
        str | None, Option(metavar="NAME", help="As in benchmark.  [default: as results.json beside A says]")
    ] = None,
    split: Annotated[str | None, Option(help="As in benchmark.  [default: as results.json beside A says]")] = None,
    root: Annotated[Path | None, Option(help="As in benchmark.  [default: as results.json beside A says]")] = None,
    out: Annotated[Path, Option(help="Folder for the numbers and the page.")] = Path("runs/compare"),
    draws: Annotated[int, Option(min=1, help="Draws of the bootstrap.")] = 20_000,
    seed: Annotated[int, Option(min=0, help="Seed of the draws.")] = 0,
    text_model: TextModel = None,
    judge_model: JudgeModel = None,
) -> None:
    """Compare the predictions of two models: difference of each measure with its 95 % interval, and what changed most.

    The interval is from a paired bootstrap over items. Where it holds 0 the difference may be chance.
    """
    from evaluation.published.compare import compare as run
    from evaluation.published.datasets import Options

    options = Options(text_model, judge_model=judge_model)
    say(run(first, second, out, name=on, split=split, root=root, draws=draws, seed=seed, options=options))
