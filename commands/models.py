"""Trained models used: export, predict, evaluate, annotate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from commands.options import (
    BatchSize,
    Device,
    Dtype,
    Group,
    MaxNewTokens,
    ModelDtype,
    Propagate,
    Sam2,
    Tiles,
    VideoFrames,
    Where,
)
from commands.output import say
from shards.errors import UserError
from shards.extras import extra
from trainer.objectives import OBJECTIVES

if TYPE_CHECKING:
    from inference.predictor import Predictor

    Objective = str
else:
    Objective = Literal[tuple(OBJECTIVES)]

What = Literal["captions", "masks-iou", "embeddings"]
Form = Literal["sa2va", "onnx", "int8"]


@extra("train")
def export(
    checkpoint: Annotated[Path, Option(help="Folder of a run, or a released model folder.")],
    out: Annotated[Path, Option(help="A new folder.")],
    form: Annotated[
        Form,
        Option(
            "--format",
            help="sa2va: the released layout. onnx: SAM 2's image encoder and mask decoder. int8: the released names, "
            "with int8 weights in the language model.",
        ),
    ] = "sa2va",
    dtype: Annotated[
        Dtype | None,
        Option(help="Dtype of all weights.  [default: as in the files that the run started from]"),
    ] = None,
    teacher: Annotated[
        bool, Option(help="Write the teacher's weights, the moving average (EMA) of those that trained. For sa2va.")
    ] = False,
    images: Annotated[
        Path | None,
        Option(help="Folder of pictures to compare on. onnx needs it; int8 takes it, together with --texts."),
    ] = None,
    texts: Annotated[
        Path | None, Option(help="Questions to compare int8 on: lines of FILE, a tab, a question.")
    ] = None,
) -> None:
    """Write a trained model, adapters merged, for others to use.

    The released layout is safetensors, config.json, tokenizer and a model card; --format has two more.
    """
    import torch

    from trainer.released.files import check_new_folder

    check_new_folder(out)
    if teacher and form != "sa2va":
        do = "export the teacher with --format sa2va, then that folder"
        raise UserError("the teacher's weights", where="--teacher", met=f"--format {form}", wanted="sa2va", do=do)
    chosen = None if dtype is None else getattr(torch, dtype)
    if form == "sa2va":
        from trainer.export import export as write

        say(write(checkpoint, out, chosen, teacher))
    else:
        from inference.deploy import export_graphs, export_quantised

        if form == "onnx":
            say(export_graphs(checkpoint, out, images))
        else:
            say(export_quantised(checkpoint, out, images, texts, chosen))


@extra("train")
def predict(
    model: Annotated[
        str, Option(metavar="DIR", help="Folder of a Sa2VA, released or exported; or OWNER/NAME on the hub.")
    ],
    image: Annotated[Path | None, Option(metavar="FILE", help="A picture, to ask --text about.")] = None,
    text: Annotated[
        str | None, Option(help='The question, such as "Please segment the dog." <image> is put in front.')
    ] = None,
    region: Annotated[
        list[Path] | None,
        Option(
            metavar="MASK",
            help="Describe this region: a mask of the picture's size. Several are region1, region2, ... in --text.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        Option(
            metavar="X0,Y0,X1,Y1",
            help="Describe what is in this box, in pixels: SAM 2 makes a region of it. Clicks behind it make it "
            "sharper: +X,Y on the object, -X,Y off it. Several are several regions.",
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        Option(
            metavar="X,Y",
            help="Describe what is at this pixel; more clicks of the same region as for --box: 30,40+35,60-250,90. "
            "Several are several regions. Regions are numbered: --region, then --box, then --point.",
        ),
    ] = None,
    video: Annotated[
        Path | None,
        Option(metavar="PATH", help="A video file, or a folder with its frames in the order of their names."),
    ] = None,
    images: Annotated[Path | None, Option(metavar="FOLDER", help="Many pictures; needs --texts.")] = None,
    texts: Annotated[
        Path | None,
        Option(metavar="FILE", help="Lines of: file name in --images, a tab, a question about it (UTF-8)."),
    ] = None,
    out: Annotated[Path, Option(help="Folder for masks, overlays and answers.")] = Path("runs/predict"),
    tiles: Tiles = 1,
    recipe: Annotated[
        str | None,
        Option(
            help="Make tensors by another recipe than in the model's training: sa2va or default.  [default: the "
            "model's own; sa2va if its folder names none]"
        ),
    ] = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = 2048,
    dtype: ModelDtype = None,
    device: Device = None,
    official_normalisation: Annotated[
        bool,
        Option("--official-normalisation", help="Round SAM 2's mean and std to bfloat16, as in official code."),
    ] = False,
    memory_dtype: Annotated[
        Dtype, Option(help="Dtype of SAM 2's memory of a video's frames; float32 takes twice the memory.")
    ] = "bfloat16",
    video_frames: VideoFrames = None,
    propagate: Propagate = None,
    sam2: Sam2 = None,
) -> None:
    """Segment pictures and videos, or describe regions, with a Sa2VA model.

    Writes masks (PNG, the picture's size), an overlay and the answer (JSON) into --out.
    """
    from inference.prompted import parse_prompt, uses_original_decoder
    from inference.run import predict as run
    from shards.recipe import named_recipe
    from trainer.released.folder import load_original_decoder

    requested = None if recipe is None else named_recipe(recipe)
    prompts = [
        *(parse_prompt(written, box=True) for written in box or ()),
        *(parse_prompt(written, box=False) for written in point or ()),
    ]

    def load() -> Predictor:
        from inference.loading import load as load_model
        from inference.predictor import Predictor
        from inference.recipes import explain

        loaded = load_model(model, device, dtype)
        say(explain(loaded, requested), file=sys.stderr)
        if sam2 is not None:
            load_original_decoder(loaded.model, sam2)
        predictor = Predictor(
            loaded,
            recipe=requested,
            most_tiles=tiles,
            max_new_tokens=max_new_tokens,
            official_normalisation=official_normalisation,
            memory_dtype=memory_dtype,
            video_frames=video_frames,
            propagate=propagate,
        )
        if prompts:
            own = uses_original_decoder(predictor)
            whose = "that SAM 2 was released with" if own else "that Sa2VA trained, for texts and not for clicks"
            say(f"boxes and clicks: masks of the mask decoder {whose}", file=sys.stderr)
        if video is not None:
            seen = f"{predictor.frames_seen or 5} {predictor.video_frames} frames are seen"
            say(f"video: {seen}, propagated by {predictor.propagate}", file=sys.stderr)
        return predictor

    for line in run(
        load,
        out,
        image=image,
        text=text,
        regions=region or (),
        prompts=prompts,
        video=video,
        images=images,
        texts=texts,
        batch_size=batch_size,
    ):
        say(line)


@extra("train")
def evaluate(
    model: Annotated[
        str, Option(metavar="DIR", help="Folder of a Sa2VA, released or exported, or of a run (its checkpoint).")
    ],
    shards: Annotated[
        list[str], Option(metavar="PATH", help="Folder or URL of a shard set; give it several times for several sets.")
    ],
    objective: Annotated[
        Objective | None,
        Option(
            help="What is asked.  [default: converse if samples have texts and no region, else segment if objects have "
            "texts, else dual]"
        ),
    ] = None,
    split: Annotated[str | None, Option(help="Only the sets that were made with this --split.")] = None,
    where: Where = None,
    texts: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Texts that objects have: source, or TABLE.COLUMN of a joined table; several times for several.  "
            "[default: source]",
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Only what a training with this data.holdout left out. 0: everything.  [default: what the model was "
            "not trained on, if its folder says so]",
        ),
    ] = None,
    holdout_by: Annotated[Group, Option(help="data.holdout_by of that training, for --holdout.")] = "picture",
    limit: Annotated[int | None, Option(min=1, help="Only the first N samples of each set.")] = None,
    batch_size: BatchSize = 8,
    max_caption_tokens: Annotated[
        int, Option(min=1, max=8192, help="Most tokens of a caption (dual), or of an answer that is generated.")
    ] = 64,
    kind: Annotated[
        str | None,
        Option(
            help="Only this kind of conversation (converse), such as grounded_caption.  [default: that of each sample]"
        ),
    ] = None,
    frames: Annotated[int, Option(min=1, max=255, help="Frames of a video that a row shows (converse).")] = 5,
    no_target: Annotated[
        Literal["refusal", "empty_mask", "left_out"],
        Option(help="True answer to an expression of no object (converse): words, or [SEG] with an empty mask."),
    ] = "refusal",
    dtype: ModelDtype = None,
    device: Device = None,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Write the numbers here.")] = None,
    predictions: Annotated[
        Path | None, Option(metavar="FILE", help="Write the predicted masks here, for cli.py browse --predictions.")
    ] = None,
    cache: Annotated[
        Path, Option(metavar="FOLDER", help="Folder on a disk of this machine, for shards from URLs.")
    ] = Path("~/.cache/sa2va-shards"),
    cache_limit: Annotated[str, Option(metavar="SIZE", help="Largest size of the cache.")] = "200GB",
) -> None:
    """Measure a Sa2VA on shards: cIoU, gIoU, Pr@0.5, Dice, cycle IoU, cross-entropy, answers with [SEG], refusals.

    Counts every sample once, on any number of processes: accelerate launch --num_processes N -m cli evaluate,
    with the same options.
    """
    from evaluation.evaluate import evaluate as run
    from shards.size import parse_size
    from shards.storage.cache import Cache

    shown = run(
        model,
        shards,
        objective=objective,
        split=split,
        where=where,
        texts=texts or ["source"],
        holdout=holdout,
        holdout_by=holdout_by,
        limit=limit,
        batch_size=batch_size,
        max_caption_tokens=max_caption_tokens,
        kind=kind,
        frames=frames,
        no_target=no_target,
        device=device,
        dtype=dtype,
        json_file=json_file,
        predictions=predictions,
        cache=Cache(cache, parse_size(cache_limit)),
    )
    if shown:
        say(shown)


@extra("train")
def annotate(
    model: Annotated[
        str, Option(metavar="DIR", help="Folder of a Sa2VA, released or exported, or of a run (its checkpoint).")
    ],
    shards: Annotated[
        list[str], Option(metavar="PATH", help="Folder or URL of a shard set; give it several times for several sets.")
    ],
    what: Annotated[
        What,
        Option(
            help="captions: of every region, with the log-probability, the cycle IoU and the swap gap of each. "
            "masks-iou: of the masks for the object's own texts. embeddings: mean visual tokens of the regions."
        ),
    ],
    out: Annotated[
        Path,
        Option(
            metavar="FILE", help="The parquet file to write; of several sets, the folder for a NAME.parquet of each."
        ),
    ],
    where: Where = None,
    batch_size: BatchSize = 8,
    max_caption_tokens: Annotated[int, Option(min=1, max=8192, help="Most tokens of a caption.")] = 64,
    dtype: ModelDtype = None,
    device: Device = None,
    cache: Annotated[
        Path, Option(metavar="FOLDER", help="Folder on a disk of this machine, for shards from URLs.")
    ] = Path("~/.cache/sa2va-shards"),
    cache_limit: Annotated[str, Option(metavar="SIZE", help="Largest size of the cache.")] = "200GB",
) -> None:
    """Write what a model says of every object of a set into a parquet file, for join and for conditions.

    With several sets, each has a file of its name.

    Each object once, on any number of processes: accelerate launch --num_processes N -m cli annotate, with the same
    options. May be stopped at any moment: the same command goes on.
    """
    from evaluation.annotate import annotate as run
    from shards.size import parse_size
    from shards.storage.cache import Cache

    shown = run(
        model,
        shards,
        what,
        out,
        where=where,
        batch_size=batch_size,
        max_caption_tokens=max_caption_tokens,
        device=device,
        dtype=dtype,
        cache=Cache(cache, parse_size(cache_limit)),
    )
    if shown:
        say(shown)
