"""The configuration of a run: a YAML file, then `key=value` from the command line; unknown keys are refused.

Defaults are those of the published recipe. Names are the literature's. The docstring of a field is its line in
docs/TRAINING.md: after a change, run `python -m trainer.config_table`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from shards.checksum import Check
from shards.errors import UserError
from shards.groups import Group
from shards.size import parse_size
from shards.storage.cache import DEFAULT_FOLDER, DEFAULT_LIMIT, Cache
from trainer.config_errors import shown, user_error
from trainer.config_values import Given, leaves, merged, nested, parse
from trainer.conversations.kinds import KINDS
from trainer.conversations.options import ConversationOptions, NoTarget
from trainer.data.object_texts import SOURCE
from trainer.limits import Bound, OneOf, Text, count, refuse
from trainer.objectives import OBJECTIVES, load_objective

_RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)
_MAX_FLOAT32 = 3e38
FRAME_TOKENS = 259
"""Tokens of a frame in a row: 256 visual ones, their two marks, and a line break."""
_MOST_PROFILED = 50
_COLUMN = re.compile(r"[a-z][a-z0-9_]*\.[^.].*", re.DOTALL)
"""A column of a joined table."""
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]*")
"""A name of a source."""
_MANY = 10**9
"""Far more than any run does or any disk holds."""


def _as_size(text: str) -> str:
    try:
        parse_size(text)
    except UserError as error:
        raise refuse(error.what, met=error.met, wanted=error.wanted) from None
    return text


def _as_where(value: Any) -> Any:
    for name in value if isinstance(value, dict) else ():
        if not _SOURCE.fullmatch(name):
            met = f"{shown(value)}, which YAML reads as a mapping for its colon and space"
            do = "put the whole condition in quotes, in those of the shell once more: \"category = 'a: b'\""
            raise refuse("not a condition", met=met, wanted="a condition, or {source: condition}", do=do)
    for condition in value.values() if isinstance(value, dict) else [value]:
        if not isinstance(Text().checked(condition), str) and value is not None:
            raise refuse("not a condition", met=shown(condition), wanted="a condition, or {source: condition}")
    return value


def _as_texts(value: Any) -> Any:
    lists = {name: _as_list(some) for name, some in value.items()} if isinstance(value, dict) else _as_list(value)
    for names in lists.values() if isinstance(lists, dict) else [lists]:
        right = isinstance(names, list) and all(name == SOURCE or _COLUMN.fullmatch(str(name)) for name in names)
        if not right or not names or len({*names}) < len(names):
            wanted = "source and TABLE.COLUMN, each at most once, such as [source, captions.caption]"
            raise refuse("not names of texts", met=shown(names), wanted=wanted)
    return lists


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, Text()]
Tracker = Literal["tensorboard", "wandb", "trackio", "none"]
FilePath = Annotated[str, Text(is_path=True)]
Size = Annotated[str, Text(), AfterValidator(_as_size)]
ObjectiveName = Annotated[str, Text(), OneOf("no such objective", lambda: OBJECTIVES)]
KindName = Annotated[str, Text(), OneOf("no such kind of conversation", lambda: tuple(KINDS))]
Fraction = Annotated[float, Bound(0, 1)]
Rate = Annotated[float, Bound(0, _MAX_FLOAT32, "it is infinite in float32", above=True)]
Beta = Annotated[float, Bound(0, 1, "a moment that forgets nothing never ends its sum", below=True)]
LossWeight = Annotated[float, Bound(0, 1e6, "weights are relative to 1")]
Repeats = Annotated[
    float,
    Bound(1e-4, 10_000, "each copy takes memory for all positions of its samples", zero=True),
    AfterValidator(lambda value: int(value) if value == int(value) else value),  # 2, not 2.0, in files and messages
]
Steps = Annotated[int, count(_MANY, "no run has more steps")]
ProfiledSteps = Annotated[int, count(_MANY, "no run has more steps")]
Seconds = Annotated[float, Bound(1, 10**7, "that is four months")]


@dataclass(config=_RULES)
class ModelConfig:
    """What a run starts from: `path`; or `internvl` with `sam2`; else `preset`."""

    path: FilePath | None = None
    """Folder of a released Sa2VA, or OWNER/NAME on the hub."""
    internvl: FilePath | None = None
    """For a first training: folder of an InternVL 2.5 or 3, or OWNER/NAME on the hub."""
    sam2: FilePath | None = None
    """For a first training, with `model.internvl`: a checkpoint (.pt) of SAM 2 or 2.1."""
    preset: Name = "tiny"
    """Sizes of a model with random weights, where none of the above is given. MODEL.md lists them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that do not train. Those that train are float32."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.path and (self.internvl or self.sam2):
            raise refuse("two models to start from", wanted="path, or internvl with sam2")
        if bool(self.internvl) != bool(self.sam2):
            raise refuse("half a model", wanted="both internvl and sam2")
        return self


@dataclass(config=_RULES)
class LoraConfig:
    """Adapters in all seven linear layers of each block of the language model."""

    r: Annotated[int, count(4096, "few layers are wider, and a larger adapter holds more numbers than its layer")] = 128
    """Rank of the adapters in all seven linear layers of each block of the language model."""
    alpha: Annotated[int, count(10**6, "it is a scale, alpha / r")] = 256
    """The adapters' output is scaled by `alpha` / `r`."""
    dropout: Annotated[float, Bound(0, 1, "with 1 nothing is learnt", below=True)] = 0.05
    """Dropout before the adapters."""


@dataclass(config=_RULES)
class DataConfig:
    """Where samples come from, and how they are read."""

    shards: list[FilePath] = field(default_factory=list)
    """Folders or URLs (s3://, gs://, az://, hf://, https://) of shard sets or of folders of sets, all of one recipe."""
    cache: FilePath = DEFAULT_FOLDER
    """Folder on a local disk for shards from URLs. Processes and runs may share it."""
    cache_limit: Size = DEFAULT_LIMIT
    """Size that the cache does not exceed."""
    fetches: Annotated[int, count(256, "a server refuses more connections from one machine")] = 4
    """Shards that are fetched at a time."""
    attempts: Annotated[int, count(1000, "with pauses of up to 30 s that is a working day")] = 8
    """Attempts at a file of a URL before it is an error."""
    sources: dict[Name, Repeats] = field(default_factory=dict)
    """How often a source's samples come per epoch, such as {sav: 2, sa1b: 0.1}; 1 for a source that is not named. Of a
    fraction each epoch takes other samples: with 0.1 each sample comes exactly once in ten epochs. 0 leaves a source
    out, which then needs no shards."""
    where: Annotated[str | dict[Name, str] | None, BeforeValidator(_as_where)] = None
    """SQL condition over the table of objects (TABLE.md), or {source: condition}: each sample is as if it had only the
    objects for which it is true. Samples without one are left out."""
    texts: Annotated[list[str] | dict[Name, list[str]], BeforeValidator(_as_texts)] = field(
        default_factory=lambda: [SOURCE]
    )
    """Texts that objects have, or {source: texts}: those of the source, or TABLE.COLUMN of joined tables (TABLE.md) in
    place of them, such as [captions.caption], or beside them, [source, captions.caption]."""
    holdout: Fraction = 0.05
    """Share of the samples that is never trained on, chosen by a hash of names; 0: none, and no evaluation."""
    holdout_by: Group = "picture"
    """Kind of group that stays together on one side: sample, file (of the raw data), folder, or picture (or video, in
    all sets)."""
    objects_per_sample: Annotated[int, count(4096, "a sample has no more")] = 1
    """Objects, or phrases of a conversation, that a step takes of a sample, at most. Each comes up before one comes
    twice."""
    frames: Annotated[int, count(99, "a sample has no more")] = 1
    """Frames of a video that a conversation shows, other ones each time. Sa2VA's own training shows 5. Each takes 256
    tokens, and a pass through SAM 2 where masks are asked for."""
    group_by_length: bool = False
    """Give an optimiser step conversations of like length: without `packing` less of a batch is padding, and with it
    steps still differ less in time on several processes."""
    threads: Annotated[int, count(1024, "no machine has more cores")] = 2
    """Threads per process that decode samples."""
    prefetch: Annotated[int, count(1024, "each batch takes memory", low=0)] = 2
    """Batches made ahead of the one in use. The memory of `prefetch` + 2 batches serves for the whole run."""
    normalise: Literal["auto", "host", "device"] = "auto"
    """Where pixels become float32 and masks one byte per pixel: by the decoders (host), or after the transfer, which
    then moves a quarter and an eighth of the bytes (device), bit for bit the same. auto: device on a GPU."""
    check: Check = "first"
    """When a sample's bytes are compared with their CRC-32 in the index: at a process's first read of it, at every
    read, or never. A flipped bit stops the run, with one line that names tar and sample, before a batch holds it."""

    def open_cache(self) -> Cache:
        """Return the cache through which shards from URLs are read; nothing is written before one is."""
        return Cache(self.cache, parse_size(self.cache_limit, "data.cache_limit"), self.fetches, self.attempts)


@dataclass(config=_RULES)
class ConversationConfig:
    """What conversations the objectives converse, segment and describe make of samples."""

    kinds: dict[Name, KindName] = field(default_factory=dict)
    """Kind of conversation by source, such as {refcocog: grounded_caption}; of a source that is not named, the first
    kind for which a sample has a text: chat, grounded_caption, regions, referring."""
    with_replacement: bool = False
    """Draw exactly `data.objects_per_sample` phrases with replacement, as Sa2VA's own training does."""
    one_phrase_per_row: bool = False
    """Give each phrase a row of its own, as in an evaluation, where it does not see the others. One row of 5 phrases
    takes a third of the tokens of 5 rows."""
    no_target: NoTarget = "refusal"
    """What an expression of no object trains. refusal: an answer in words without [SEG]; empty_mask: [SEG] with an
    empty mask in each frame, as Sa2VA's own training on videos; left_out: nothing."""
    negatives: Fraction = 0.0
    """Share of the phrases that are replaced by one of another picture of the source, as an expression of no object."""
    max_row_tokens: Annotated[int, count(32768, "no language model of Sa2VA reads more")] = 8192
    """Tokens of a row, at most. Longer ones are cut at their end, and lose the masks that are asked for there."""


@dataclass(config=_RULES)
class BenchmarkConfig:
    """A published benchmark on which the model in training is measured."""

    on: Name
    """Its name, as `cli.py benchmark --on` takes it."""
    root: FilePath
    """Folder of its raw data, as `cli.py benchmark --root` takes it."""
    split: Name | None = None
    """Split; the benchmark's first where none is given."""
    limit: Annotated[int, count(_MANY, "no benchmark has more")] = 500
    """Items that are asked, at most: the first ones."""
    tiles: Annotated[int, count(12, "no released model was trained with more")] = 12
    """Tiles of a picture, at most. 1 shows it as shards do."""


@dataclass(config=_RULES)
class EvalConfig:
    """Evaluation on held-out samples, and on published benchmarks."""

    every: Steps = 500
    """Optimiser steps between evaluations. There is one before the first step and one after the last, too."""
    samples: Annotated[int, count(_MANY, "no set has more")] = 64
    """Held-out samples per evaluation, at most, of all sets in turn: always the same ones, on any number of
    processes."""
    show: Annotated[int, count(1000, "the report holds them all in one page", low=0)] = 8
    """Held-out samples of the main process that contact sheets and report show."""
    answer_tokens: Annotated[int, count(8192, "answers are written one token after the other")] = 64
    """Tokens of the answer that the model itself writes to a conversation's first question, or to an item of a
    benchmark, at most."""
    benchmarks: list[BenchmarkConfig] = field(default_factory=list)
    """Published benchmarks that are measured when held-out samples are, also where nothing is held out, such as
    [{on: refcoco, split: val, root: data, limit: 500}]."""


@dataclass(config=_RULES)
class CheckpointConfig:
    """When checkpoints are written, and which stay."""

    every: Steps = 500
    """Optimiser steps between checkpoints. There is one after the last step and where a signal stops the run, too."""
    keep: Annotated[int, count(10**6, "no disk holds more")] = 2
    """Newest checkpoints that stay, beside the one with the lowest held-out mask loss."""
    background: bool = True
    """Go on with the next step while a checkpoint is written, from a copy in the memory of the main process."""


@dataclass(config=_RULES)
class ObjectiveConfig:
    """One objective of a mix."""

    sources: list[Name] = field(default_factory=list)
    """Sources that the objective trains on; all where none is named."""
    weight: Annotated[float, Bound(0, 1e6, "weights are relative to 1", above=True)] = 1.0
    """Weight of the objective's loss. Elsewhere the reverse loop's is called beta, and is 0.5."""


@dataclass(config=_RULES)
class Config:
    """All keys of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveName = "dual"
    """dual: mask -> caption -> mask, needs no text. segment: text -> mask, and describe: mask -> text, supervised.
    reverse: text -> mask -> text. converse: all texts, as conversations, supervised."""
    mix: dict[ObjectiveName, ObjectiveConfig] = field(default_factory=dict)
    """Several objectives in place of `objective`: each step takes batches of all, such as
    {dual: {sources: [sav]}, reverse: {sources: [refcoco], weight: 0.5}}."""
    project: bool = False
    """In a mix, remove from the reverse loop's gradient what is parallel to that of the others."""
    trainable: list[Name] = field(default_factory=lambda: ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"])
    """Parts that train; all others are frozen. Also: token_embeddings, language_model, vision_model,
    sam_image_encoder."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False
    """Compute activations of the language model again in the backward pass: less memory, more time."""
    packing: bool = True
    """Lay the rows of a batch end to end in one sequence, in which each token sees those of its own row alone; false:
    pad rows to one length. The losses are the same within rounding."""
    compile: bool = False
    """Compile the layers of vision tower, SAM 2's image encoder and language model with torch.compile."""

    lambda_mask: LossWeight = 1.0
    """Weight of the mask's cross-entropy (bce)."""
    lambda_dice: LossWeight = 1.0
    """Weight of the Dice loss."""
    lambda_lang: LossWeight = 0.5
    """Weight of the cross-entropy of the segmentation answer, or of a conversation's answers (lang)."""
    lambda_anchor: LossWeight = 0.5
    """Weight of the cross-entropy against the uncorrupted pseudo caption (anchor)."""
    loss_means: Literal["objects", "sa2va"] = "objects"
    """What the losses of conversations are means over. objects: lang over rows, of the means over their trained tokens;
    bce and dice over masks. sa2va: as Sa2VA's own training: lang over all trained tokens; bce and dice over 5 masks of
    each picture."""
    num_points: Annotated[int, count(1024 * 1024, "a mask has no more pixels")] = 12544
    """Points per mask at which bce and Dice compare prediction and truth."""
    oversample_ratio: Annotated[float, Bound(1, 16, "memory grows with it")] = 3.0
    """Candidates per point, among which the uncertain ones are chosen."""
    importance_sample_ratio: Fraction = 0.75
    """Share of the points that are the most uncertain candidates; the others are spread evenly."""

    ema_decay: Fraction = 0.999
    """EMA decay of the teacher per optimiser step."""
    vary_wording: bool = True
    """Draw the wording of segmentation questions and answers for each object, as in Sa2VA's recipe; false: word them
    as an evaluation does."""
    max_caption_tokens: Annotated[int, count(8192, "pseudo captions are written one token after the other")] = 64
    """Tokens of a pseudo caption, at most."""
    caption_temperature: Annotated[float, Bound(1e-3, 100, "captions are random words far below that", zero=True)] = 0.0
    """Temperature of the teacher's pseudo captions; 0 is greedy."""
    max_text_tokens: Annotated[int, count(32768, "no language model of Sa2VA reads more")] = 512
    """Tokens of a text that `describe` or `reverse` learns, at most. Longer ones are cut and have no end token."""
    corrupt_ratio: Fraction = 0.25
    """Probability with which a word of the pseudo caption is replaced by a random one."""
    gumbel_tau: Annotated[float, Bound(1e-3, 1000, "the mixture is even far below that")] = 0.7
    """Temperature of the straight-through Gumbel-softmax."""
    gumbel_top_k: Annotated[int, count(10**6, "no vocabulary is larger")] = 256
    """Likeliest tokens that the Gumbel-softmax chooses among."""

    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or torchao's with moments of 8 bits per value."""
    lr: Rate = 2e-5
    """Learning rate after the warm-up."""
    rates: dict[Name, Rate] = field(default_factory=dict)
    """Learning rates of parts with one of their own, such as {text_hidden_fcs: 2e-4}, on the same schedule; the others
    have `lr`, which is what records show."""
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of AdamW's two moments per optimiser step."""
    eps: Annotated[float, Bound(0, 1, "it is added to the square root of a squared gradient")] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Bound(0, 1000, "rate times decay above 1 turns weights around")] = 0.05
    """AdamW's decoupled weight decay."""
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    """matrices: parameters of two or more dimensions: weights of linear layers and convolutions, adapters, and
    embeddings, as SAM 2 and transformers do; not biases, norms and scales of layers. all: those too."""
    warmup_steps: Annotated[int, count(_MANY, "no run has more steps", low=0)] = 366
    """Optimiser steps of the linear warm-up; a cosine to 0 at the last step follows."""
    warmup_from: Fraction = 0.5
    """Share of `lr` at which the warm-up starts."""
    steps: Annotated[int, count(_MANY, "no run does more")] = 12192
    """Optimiser steps of the run."""
    accumulation: Annotated[int, count(10**6, "no step takes more batches")] = 2
    """Batches per optimiser step on each process."""
    batch_size: Annotated[int, count(65536, "no GPU holds more samples")] = 4
    """Samples per batch on each process."""
    clip: Rate = 1.0
    """Norm to which the gradient is clipped."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """bf16: autocast, weights that train stay float32. no: float32."""
    seed: Annotated[
        int, count(2**31 - 1, "numpy takes 32 bits, and the step and the process are added to it", low=0)
    ] = 0
    """Seed of all that is drawn at random."""
    collective_timeout: Seconds = 1800.0
    """Seconds after which a process that waits for another one in vain ends the run."""
    stall_notice: Seconds = 60.0
    """Seconds of waiting after which the log says which process waits for which."""

    data: DataConfig = field(default_factory=DataConfig)
    conversation: ConversationConfig = field(default_factory=ConversationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: Annotated[list[Tracker], BeforeValidator(_as_list)] = field(default_factory=lambda: ["tensorboard"])
    """Where scalars and contact sheets go beside metrics.jsonl, one or a list. tensorboard: `output_dir`/tensorboard;
    wandb and trackio: a run of theirs, which goes on with this one; none."""
    profile: dict[Literal["from", "steps"], ProfiledSteps] = field(default_factory=dict)
    """Optimiser steps of which Chrome traces are written to `output_dir`/profile, such as {from: 10, steps: 3}; at most
    50. Where one of the two is given, these are the defaults of the other."""
    resume: FilePath = "auto"
    """auto: go on where the run in `output_dir` stopped, if there is one. never: refuse to. Else the folder of a
    checkpoint or of a run to go on from."""
    output_dir: FilePath = "runs/train"
    """Folder that the run writes in."""

    def objectives(self) -> dict[str, ObjectiveConfig]:
        """Return what each step trains; an objective whose gradient `project` may change comes last."""
        mix = self.mix or {self.objective: ObjectiveConfig()}
        return {name: mix[name] for name in sorted(mix, key=lambda name: load_objective(name).projected)}

    def key_of(self, objective: str) -> str:
        """Return the key that asks for this objective."""
        return f"mix.{objective}" if self.mix else f"objective={objective}"

    def sources(self) -> set[str] | None:
        """Return the sources whose shards an objective reads; None: all."""
        chosen = [entry.sources for entry in self.mix.values()] or [[]]
        return {name for names in chosen for name in names} if all(chosen) else None

    def trackers(self) -> list[str]:
        """Return the names of the trackers, each once."""
        return [name for name in dict.fromkeys(self.tracker) if name != "none"]

    def profiled(self) -> range:
        """Return the optimiser steps that are profiled, counted from 1."""
        first = self.profile.get("from", 10)
        return range(first, first + self.profile.get("steps", 3) if self.profile else first)

    def conversation_options(self) -> ConversationOptions:
        """Return what conversations are made of samples."""
        return ConversationOptions(
            seed=self.seed,
            kinds=self.conversation.kinds,
            phrases=self.data.objects_per_sample,
            with_replacement=self.conversation.with_replacement,
            one_phrase_per_row=self.conversation.one_phrase_per_row,
            frames=self.data.frames,
            no_target=self.conversation.no_target,
            negatives=self.conversation.negatives,
            vary_wording=self.vary_wording,
            max_text_tokens=self.max_text_tokens,
            max_row_tokens=self.conversation.max_row_tokens,
        )

    def judging_options(self, phrases: int) -> ConversationOptions:
        """Return what conversations held-out samples are judged by: at most `phrases` phrases, a row for each."""
        return replace(
            self.conversation_options(),
            phrases=phrases,
            with_replacement=False,
            one_phrase_per_row=True,
            vary_wording=False,
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise refuse("out of range", key="warmup_steps", met=str(self.warmup_steps), wanted=f"< {self.steps}")
        pictures = self.data.frames * FRAME_TOKENS
        if self.conversation.max_row_tokens <= pictures:
            what = "rows end before their pictures do"
            expected = f"> {pictures:,}: data.frames={self.data.frames}, {FRAME_TOKENS} tokens each"
            met = str(self.conversation.max_row_tokens)
            raise refuse(what, key="conversation.max_row_tokens", met=met, wanted=expected)
        if self.model.dtype == "bfloat16" and self.mixed_precision == "no":
            what = "float32 adapters on bfloat16 weights need autocast"
            do = "set mixed_precision=bf16"
            raise refuse(what, key="model.dtype", met="bfloat16", do=do)
        if "none" in self.tracker and self.trackers():
            raise refuse("none, and others", key="tracker", met=", ".join(self.tracker), wanted="one of the two")
        if len(self.profiled()) > _MOST_PROFILED:
            expected = f"at most {_MOST_PROFILED}: a trace of many takes gigabytes of memory"
            raise refuse("too many", key="profile.steps", met=str(self.profile["steps"]), wanted=expected)
        for part in self.rates:
            if part not in self.trainable and not self._is_unreached(part):
                expected = " or ".join(self.trainable)
                raise refuse("a rate for a part that does not train", key="rates", met=part, wanted=expected)
        if self.project and (len(self.mix) < 2 or not any(load_objective(name).projected for name in self.mix)):
            chosen = ", ".join(self.mix) or self.objective
            expected = "a mix of reverse and another objective"
            raise refuse("nothing to be orthogonal to", key="project", met=chosen, wanted=expected)
        return self

    def _is_unreached(self, part: str) -> bool:
        """Return whether no loss reaches `part`: a run then takes it out of `trainable`, but its rate may stay."""
        return all(part in load_objective(name).unreached_parts for name in self.mix or [self.objective])


_VALIDATOR: TypeAdapter[Config] = TypeAdapter(Config)


def load_config(arguments: Sequence[str]) -> Config:
    """Return the configuration that `[config.yaml] [key=value ...]` asks for.

    An interpolation, such as ${oc.env:NAME} or ${steps}, is replaced by its value, which the field then reads.

    Raises:
        UserError: a file that cannot be read, a key that does not exist, a value of the wrong type or out of range.
    """
    values = Given(arguments, Config.__pydantic_fields__)  # type: ignore[attr-defined]
    return _checked(values.over(asdict(Config())), values.file_of)


def save_config(config: Config, path: Path) -> None:
    """Write the effective configuration as YAML that `load_config` reads back."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def flat(config: Config) -> dict[str, Any]:
    """Return the configuration by dotted key, without empty mappings."""
    return dict(leaves(asdict(config)))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of `config` with other values, by dotted key."""
    return _checked(functools.reduce(merged, (nested(key, value) for key, value in values.items()), asdict(config)))


def fields(section: type = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key of each field below `section` and what pydantic knows of it; NAME stands for any name."""
    for name, info in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        key = f"{prefix}{name}"
        inner = [part for part in (info.annotation, *get_args(info.annotation)) if is_dataclass(part)]
        if inner != [info.annotation]:
            yield key, info
        for kind in inner:
            assert isinstance(kind, type)
            named = "[]." if get_origin(info.annotation) is list else ".NAME."
            yield from fields(kind, key + ("." if kind is info.annotation else named))


def _checked(values: dict[str, Any], file_of: Callable[[Sequence[str | int]], str] = lambda keys: "") -> Config:
    """Return the configuration of `values`; `file_of` names the file that gave the value at a place."""
    try:
        return _VALIDATOR.validate_python(values)
    except ValidationError as error:
        raise user_error(error, file_of, [key for key, _ in fields()], _accepts) from None


def _accepts(key: str, text: str) -> bool:
    """Return whether `key=text` alone would be accepted."""
    try:
        _VALIDATOR.validate_python(merged(asdict(Config()), parse(f"{key}={text}")))
    except (UserError, ValidationError):
        return False
    return True
