"""Options that several verbs have, with their help, and the values that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

Codec = Literal["gradient", "zstd", "raw", "jpeg"]
Group = Literal["sample", "file", "folder", "picture"]
Dtype = Literal["float32", "bfloat16"]

# What to shard, and how: shard, estimate.
Source = Annotated[
    str,
    Option(
        help="Dataset to read: a name in docs/datasets/, or your own MODULE:CLASS. sa2va-training: all datasets that "
        "Sa2VA is trained on, in one folder."
    ),
]
Root = Annotated[Path | None, Option(help="Folder of the raw data.  [default: data/SOURCE]")]
RecipeName = Annotated[str, Option(help="How the tensors are made: default or sa2va.")]
PromptPooling = Annotated[
    str | None, Option(help="Pool prompt cells in another way than the recipe: center, corner or area.")
]
SourceSplit = Annotated[
    str | None,
    Option(help="Split of the dataset to read, where it has several; of llava, videoqa and text: the file."),
]
SplitBy = Annotated[str | None, Option(help="Whose split it is: unc, google or umd (refcoco).")]
Frames = Annotated[int | None, Option(min=1, help="Frames per sample, where the source is a video.")]
Void = Annotated[
    int | None,
    Option(min=0, help="Value in mask files that marks no object, besides 0 (folder).  [default: 255, as in VOC]"),
]
MaskSlack = Annotated[
    int | None,
    Option(min=0, max=64, help="Pixels by which a mask's sides may differ from its picture's.  [default: 0]"),
]
Workers = Annotated[int | None, Option(min=1, help="Processes.  [default: one per usable processor]")]
Limit = Annotated[int | None, Option(min=1, help="Take the first N inputs only.")]
Without = Annotated[
    list[str] | None,
    Option(
        metavar="SET",
        help="Leave out the inputs that this set, folder of sets or pattern holds. May be given several times.",
    ),
]
PictureCodec = Annotated[
    Codec | None,
    Option(
        help="Codec of the pictures: gradient (a third of the bytes), raw (the fastest to read) or zstd (for releases "
        "that do not know gradient), all lossless; or jpeg (a tenth), which is not.  [default: that of the set that "
        "stands there, else gradient]"
    ),
]

# Shards: shard, estimate, split, sample, recode, preview.
ShardSize = Annotated[str, Option(help="Largest size of a tar.")]
FinishedSet = Annotated[Path, Argument(help="Folder of a finished shard set.")]
Where = Annotated[
    str | None,
    Option(
        metavar="CONDITION",
        help='Choose objects in SQL, such as "area > 0.002 and words > 1"; docs/TABLE.md.',
    ),
]
NewFolder = Annotated[Path, Option(help="A new folder, for the set itself.")]
MaxBad = Annotated[float, Option(min=0, max=1, help="Largest share of bad inputs; more of them stop the run.")]

# Models: predict, serve, evaluate, benchmark.
ModelDtype = Annotated[
    Dtype | None, Option(help="Dtype of the weights.  [default: bfloat16 on a GPU, float32 on a CPU]")
]
Device = Annotated[str | None, Option(help="Device, such as cpu, cuda or cuda:1.  [default: a GPU if there is one]")]
Tiles = Annotated[
    int, Option(min=1, max=12, help="Most tiles. 1: the whole picture at 448 x 448. 12: as the official inference.")
]
MaxNewTokens = Annotated[int, Option(min=1, help="Most tokens of an answer.")]
BatchSize = Annotated[int, Option(min=1, help="Questions per batch.")]
VideoFrames = Annotated[
    Literal["first", "uniform"] | None,
    Option(
        help="The frames of a video that the language model sees: the first, or spread uniformly.  [default: as "
        "video_frames in the model's config.json says; uniform if it says nothing]"
    ),
]
Propagate = Annotated[
    Literal["tuned", "sam2"] | None,
    Option(
        help="Makes the masks of a video's other frames. tuned: the mask decoder that Sa2VA trained. sam2: SAM 2's "
        "own.  [default: sam2 if the model has both, or with --sam2; else tuned]"
    ),
]
Sam2 = Annotated[
    Path | None,
    Option(metavar="FILE", help="SAM 2's checkpoint (.pt), for --propagate sam2 with a model without its decoder."),
]
