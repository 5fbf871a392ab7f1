"""The configuration of a run: a YAML file, then `key=value` from the command line; unknown keys are refused.

Defaults are those of the published recipe. Names are the literature's.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from shards.cache import DEFAULT_FOLDER, DEFAULT_LIMIT, Cache
from shards.checksum import CHECKS
from shards.errors import UserError
from shards.groups import GROUPS
from shards.regular_file import read_regular
from shards.size import parse_size
from trainer.limits import check_leaves
from trainer.yaml_size import MOST_BYTES, check_yaml


@dataclass
class ModelConfig:
    """One of: `path`; `internvl` with `sam2`; else `preset`."""

    path: str | None = None
    """A released Sa2VA: its folder, or OWNER/NAME on the hub."""
    internvl: str | None = None
    """For a first training: InternVL 2.5 or 3, its folder, or OWNER/NAME on the hub."""
    sam2: str | None = None
    """For a first training: a checkpoint (.pt) of SAM 2 or 2.1."""
    preset: str = "tiny"
    """Sizes with random weights, see `trainer/model/architecture.py`."""
    dtype: str = "float32"
    """Of the weights that do not train: float32 or bfloat16. Those that train are float32."""


@dataclass
class LoraConfig:
    r: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass
class DataConfig:
    shards: list[str] = field(default_factory=list)
    """Folders of shard sets, or their URLs (s3://, gs://, https://), all of one recipe."""
    cache: str = DEFAULT_FOLDER
    """Folder on a disk of this machine for shards from URLs; processes and runs may share it."""
    cache_limit: str = DEFAULT_LIMIT
    """Size that the cache does not exceed."""
    fetches: int = 4
    """Shards fetched at a time."""
    attempts: int = 8
    """At reading a file from a URL, before it is an error."""
    sources: dict[str, int] = field(default_factory=dict)
    """How often the samples of a source stand in an epoch, such as {sav: 2, refcoco: 4}; once where it is not named."""
    holdout: float = 0.05
    """Share of the samples that is never trained on; 0 for none (and no evaluation)."""
    holdout_by: str = "picture"
    """Kind of group that stays together on one side of it: sample, file (of the raw data), folder, or picture (or
    video, in whatever set it stands)."""
    objects_per_sample: int = 1
    """Objects of a sample that a step takes, at most. Each comes up before one comes twice."""
    threads: int = 2
    prefetch: int = 2
    """Batches in the making ahead of the one in use."""
    normalise: str = "auto"
    """Where `pixel_values` become float32 and masks a byte a pixel: host (by the threads), device, or auto: on the
    device where it is a GPU."""
    check: str = "first"
    """When a sample's bytes are compared with their checksum: at a process's first read of it, always, or never."""

    def open_cache(self) -> Cache:
        """Where shards from URLs are read through; nothing is written before one is."""
        return Cache(self.cache, parse_size(self.cache_limit, "data.cache_limit"), self.fetches, self.attempts)


@dataclass
class EvalConfig:
    every: int = 500
    """Optimiser steps between two evaluations; there is one before the first step and one after the last, too."""
    samples: int = 64
    """Held-out samples in an evaluation, at most; always the same ones."""
    show: int = 8
    """Held-out samples that the report shows."""


@dataclass
class CheckpointConfig:
    every: int = 500
    """Optimiser steps between two checkpoints; there is one after the last step and where a signal stops it, too."""
    keep: int = 2
    """Newest checkpoints that stay, beside the one with the lowest held-out mask loss."""


@dataclass
class Share:
    """One objective of a mix."""

    sources: list[str] = field(default_factory=list)
    """Whose shards it trains on; all that are there where none is named."""
    weight: float = 1.0
    """Of its loss. The reverse loop's is called beta elsewhere, and 0.5."""


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: str = "dual"
    """dual: mask -> caption -> mask, needs no text. segment: text -> mask, supervised. describe: mask -> text,
    supervised. reverse: text -> mask -> text."""
    mix: dict[str, Share] = field(default_factory=dict)
    """Several objectives in place of `objective`: each step takes batches of all, such as
    {dual: {sources: [sav]}, reverse: {sources: [refcoco], weight: 0.5}}."""
    project: bool = False
    """In a mix, take away from the reverse loop's gradient what is parallel to that of the others."""
    trainable: list[str] = field(default_factory=lambda: ["lora", "mlp1", "text_hidden_fcs", "sam_mask_decoder"])
    """Parts that train, see `trainer/model/trainable.py`; all others are frozen."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False
    compile: bool = False
    """Compile the layers of vision tower, SAM 2's image encoder and language model with torch.compile."""

    lambda_mask: float = 1.0
    lambda_dice: float = 1.0
    lambda_lang: float = 0.5
    lambda_anchor: float = 0.5
    num_points: int = 12544
    """Points a mask at which BCE and Dice compare prediction and truth."""
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    ema_decay: float = 0.999
    """Of the teacher, an optimiser step."""
    vary_wording: bool = True
    """Draw the wording of segmentation questions and answers for each object; else it is the one that an evaluation
    asks with."""
    max_caption_tokens: int = 64
    caption_temperature: float = 0.0
    """Of the teacher's pseudo captions; 0 is greedy."""
    max_text_tokens: int = 512
    """Of the texts that are learnt; longer ones are cut."""
    corrupt_ratio: float = 0.25
    gumbel_tau: float = 0.7
    gumbel_top_k: int = 256

    optimizer: str = "adamw"
    """adamw, or adamw8bit: moments in 8 bits a value, of torchao."""
    lr: float = 2e-5
    rates: dict[str, float] = field(default_factory=dict)
    """Of parts that have a rate of their own, such as {text_hidden_fcs: 2e-4}; the others have `lr`."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.05
    weight_decay_on: str = "matrices"
    """matrices: parameters of two or more dimensions, so not biases, norms and scales. all: those too."""
    warmup_steps: int = 366
    warmup_from: float = 0.5
    """Share of `lr` that the linear warm-up starts from; after it a cosine falls to 0 at the last step."""
    steps: int = 12192
    """Optimiser steps of the run."""
    accumulation: int = 2
    """Batches an optimiser step."""
    batch_size: int = 4
    """Samples a batch and process."""
    clip: float = 1.0
    mixed_precision: str = "bf16"
    """bf16 (autocast, float32 weights) or no."""
    seed: int = 0
    collective_timeout: float = 1800.0
    """Seconds after which a process that waits for another one in vain ends the run."""
    stall_notice: float = 60.0
    """Seconds of waiting after which the log says which process waits for which."""

    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: str = "auto"
    """auto: go on where the run in `output_dir` stopped, if there is one. never: refuse to. Else the folder of a
    checkpoint or of a run to go on from."""
    output_dir: str = "runs/train"

    def objectives(self) -> dict[str, Share]:
        """What each step trains, the reverse loop last."""
        mix = self.mix or {self.objective: Share()}
        return {name: mix[name] for name in sorted(mix, key=lambda name: name == "reverse")}

    def key_of(self, objective: str) -> str:
        """The key that asks for this objective."""
        return f"mix.{objective}" if self.mix else f"objective={objective}"

    def sources(self) -> set[str] | None:
        """Sources whose shards an objective reads; None: all that are there."""
        shares = self.objectives().values()
        return {name for share in shares for name in share.sources} if all(s.sources for s in shares) else None


_SHOWN = 300
"""Characters of a value that a message shows."""
OBJECTIVES = ("dual", "segment", "describe", "reverse")
CHOICES = {
    "objective": OBJECTIVES,
    "mixed_precision": ("bf16", "no"),
    "optimizer": ("adamw", "adamw8bit"),
    "weight_decay_on": ("matrices", "all"),
    "model.dtype": ("float32", "bfloat16"),
    "data.normalise": ("auto", "host", "device"),
    "data.check": CHECKS,
    "data.holdout_by": GROUPS,
}


def load_config(arguments: Sequence[str]) -> Config:
    """The configuration that `[config.yaml] [key=value ...]` asks for.

    Raises:
        UserError: a file that cannot be read, a key that does not exist, a value of the wrong type or out of range.
    """
    config = OmegaConf.structured(Config)
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise UserError("more than one configuration file", met=", ".join(files), wanted="[config.yaml] key=value ...")
    for file in files:
        config = _merge(config, _read(Path(file)), file)
    for argument in arguments:
        if "=" in argument:
            config = _merge(config, _parse(argument), argument)
    checked = _resolved(config)
    _check(checked)
    return checked


def _resolved(config: Any) -> Config:
    """The configuration with its interpolations, such as ${oc.env:NAME}, replaced by values of the right type."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        typed = OmegaConf.to_object(_merge(OmegaConf.structured(Config), OmegaConf.create(values), "configuration"))
    except OmegaConfBaseException as error:
        where, met = str(error.full_key or "configuration"), str(error).splitlines()[0][:_SHOWN]
        raise UserError("cannot be resolved", where=where, met=met, do="give a value") from None
    except RecursionError:
        raise UserError("cannot be resolved", where="configuration", met="a value that refers to itself") from None
    assert isinstance(typed, Config)
    return typed


def save_config(config: Config, path: Path) -> None:
    """Write the effective configuration as YAML that `load_config` reads back."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def flat(config: Config) -> dict[str, Any]:
    """The configuration as dotted keys."""
    out: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            out[prefix] = node

    walk(OmegaConf.to_container(OmegaConf.structured(config)), "")
    return out


def _read(path: Path) -> DictConfig:
    try:
        data = read_regular(path, MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError("too large", where=str(path), wanted=f"at most {MOST_BYTES:,} bytes")
        check_yaml(data, str(path))
        loaded = OmegaConf.load(io.BytesIO(data))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted="[config.yaml] key=value ...") from None
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror), wanted="a YAML file") from None
    except UserError:
        raise
    except Exception as error:  # a YAML parser has many ways to fail, and none of them deserves a traceback
        met = str(error)[:_SHOWN] or type(error).__name__
        raise UserError("cannot be read as YAML", where=str(path), met=met) from None
    if not isinstance(loaded, DictConfig):
        raise UserError("not a mapping", where=str(path), met=type(loaded).__name__, wanted="key: value")
    return loaded


def _parse(argument: str) -> DictConfig:
    key, _, value = argument.partition("=")
    if not value.strip():
        do = "is a variable unset? Leave the key out, or give null where it may be nothing"
        raise UserError("empty value", where=key, met=repr(value), wanted="key=value", do=do)
    try:
        check_yaml(value, key)
        return OmegaConf.from_dotlist([argument])
    except UserError:
        raise
    except Exception as error:
        where, met = argument[:_SHOWN], str(error)[:_SHOWN] or type(error).__name__
        raise UserError("cannot be read", where=where, met=met, wanted="key=value") from None


def _merge(config: Any, update: Any, where: str) -> Any:
    where = where[:_SHOWN]
    try:
        if update.get("mixed_precision") is False:
            update.mixed_precision = "no"  # YAML reads a bare no as false
        config.merge_with(update)  # in place: `OmegaConf.merge` copies all keys for each one that is given
        return config
    except ConfigKeyError as error:
        key = str(error.full_key)
        known = flat(Config())
        close = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.split(".")[-1], known, n=1)
        do = f"did you mean {close[0]}?" if close else "docs/TRAINING.md lists the keys"
        raise UserError("unknown key", where=where, met=key, do=do) from None
    except OmegaConfBaseException as error:
        met = str(error).splitlines()[0][:_SHOWN]
        raise UserError(
            "wrong type", where=f"{where}, {error.full_key}" if error.full_key else where, met=met
        ) from None
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:  # of OmegaConf's own code
        raise UserError("wrong type", where=where, met=str(error)[:_SHOWN]) from None


def _check(config: Config) -> None:
    check_leaves(asdict(config))
    given = flat(config)
    for key, allowed in CHOICES.items():
        if (value := given[key]) not in allowed:
            raise UserError("no such choice", where=key, met=repr(value), wanted=" or ".join(allowed))
    if config.warmup_steps >= config.steps and config.warmup_steps:
        raise UserError("out of range", where="warmup_steps", met=str(config.warmup_steps), wanted=f"< {config.steps}")
    parse_size(config.data.cache_limit, "data.cache_limit")
    if config.model.path and (config.model.internvl or config.model.sam2):
        raise UserError("two models to start from", where="model", wanted="path, or internvl with sam2")
    if bool(config.model.internvl) != bool(config.model.sam2):
        raise UserError("half a model", where="model", wanted="both internvl and sam2")
    if config.model.dtype == "bfloat16" and config.mixed_precision == "no":
        where, do = "model.dtype", "set mixed_precision=bf16"
        raise UserError("float32 adapters on bfloat16 weights need autocast", where=where, met="bfloat16", do=do)
    for name in config.rates:
        if name not in config.trainable:
            met, wanted = str(name), " or ".join(config.trainable)
            raise UserError("a rate for a part that does not train", where="rates", met=met, wanted=wanted)
    for name in config.mix:
        if name not in OBJECTIVES:
            raise UserError("no such objective", where="mix", met=str(name), wanted=" or ".join(OBJECTIVES))
    if config.project and ("reverse" not in config.mix or len(config.mix) < 2):
        met, wanted = ", ".join(config.mix) or config.objective, "a mix of reverse and another objective"
        raise UserError("nothing to be orthogonal to", where="project", met=met, wanted=wanted)
    if len(config.betas) != 2:
        raise UserError("not two numbers", where="betas", met=str(config.betas), wanted="[0.9, 0.999]")
