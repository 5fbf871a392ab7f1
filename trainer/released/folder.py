"""Load and save Sa2VA in the layouts that people have on disk. Every tensor must be used, every parameter filled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shards.errors import UserError
from shards.regular_file import check_regular
from trainer.model.architecture import LARGE_SAM, SAM_21_ONLY, Architecture, sa2va_config, sam_of
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import ADDED
from trainer.released.files import (
    TensorFolder,
    check_fit,
    checked,
    floating,
    read_json,
    resolve,
    without_prefix,
    write_folder,
)
from trainer.released.loaded import UNKNOWN, LoadedModel, ModelInfo
from trainer.released.names import MODIFIED, Stored, plan, released_name
from trainer.released.pointers import refuse_pointers
from trainer.released.settings import check_settings
from trainer.released.tokenizer import is_fault, load_tokenizer, save_tokenizer
from trainer.released.training import read_training, write_training

_SAM = "grounding_encoder.sam2_model."
_TABLE = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"
_TABLES = ("model.embed_tokens", "lm_head", "model.tok_embeddings", "output")
"""Token table and output head of all language models, in files."""
_NEVER_TRAINED = ("no_mem_embed", "maskmem_tpos_enc", "no_obj_ptr")
"""Tensors of SAM 2's memory, by which one SAM 2 is told from another."""
_TEMPLATES = {"InternLM2ForCausalLM": "internlm2_chat"}


@dataclass(frozen=True)
class _Tensors:
    """Tensors in files."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    where: str
    """The files, for messages."""


def load_model(
    source: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load a released Sa2VA: frozen, in evaluation mode.

    Args:
        source: a folder with config.json, safetensors and a tokenizer; or OWNER/NAME on the hub.
        dtype: of all floating point weights; None keeps that of the files.
        device: of all weights.

    Raises:
        UserError: the folder is no Sa2VA of this kind, or a tensor is missing, unexpected or of another shape.
    """
    folder = resolve(source)
    file = folder / "config.json"
    config = _sa2va_config(file)
    with TensorFolder(folder) as files:
        shapes = files.shapes
        check_settings(config, shapes, str(file))
        sam = sam_of({n.removeprefix(_SAM): s for n, s in shapes.items() if n.startswith(_SAM)}, str(folder))
        model = hollow_model(Architecture(config, sam, str(file)), load_tokenizer(folder))
        if any(name.startswith(MODIFIED) for name in shapes):
            model.grounding_encoder.add_original_decoder()
        stored_dtype = _fill(model, _Tensors(shapes, files.__getitem__, str(folder)), dtype, device)
    recipe, trained_on = read_training(folder)
    return LoadedModel(model, ModelInfo(folder, stored_dtype, recipe, trained_on))


def load_parts(
    internvl: str | Path, sam2: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load InternVL 2.5 or 3 and SAM 2 or 2.1 into a Sa2VA that was never trained: frozen, in evaluation mode.

    New are `text_hidden_fcs`, and the token table and head where they got rows for Sa2VA's tokens.

    Args:
        internvl: its folder in OpenGVLab's own layout, or OWNER/NAME on the hub.
        sam2: its checkpoint, a `.pt` file.
        dtype: of all floating point weights; None keeps that of the files.
        device: of all weights.

    Raises:
        UserError: as in `load_model`.
    """
    folder = resolve(internvl)
    file = folder / "config.json"
    internvl_config = _internvl_config(file)
    with TensorFolder(folder) as files:
        shapes = files.shapes
        check_settings(internvl_config, shapes, str(file))
        config = _config_with_sam(internvl_config)
        sam_tensors = read_sam(sam2)
        sam = sam_of({name: tuple(tensor.shape) for name, tensor in sam_tensors.items()}, str(sam2))
        tables = {f"language_model.{name}.weight" for name in _TABLES} & shapes.keys()
        rows = max((shapes[name][0] for name in tables if shapes[name]), default=0)
        tokenizer = _extended_tokenizer(folder)
        vocabulary = config["llm_config"]["vocab_size"] = max(rows, len(tokenizer))
        model = hollow_model(Architecture(config, sam, str(file)), tokenizer)
        fresh = {f"text_hidden_fcs.{name}": tensor for name, tensor in model.text_hidden_fcs.state_dict().items()}
        others = fresh | {released_name(_SAM + name): tensor for name, tensor in sam_tensors.items()}
        grown = tables if rows < vocabulary else set()

        def read(name: str) -> Tensor:
            if name in others:
                return others[name]
            return _grow(files[name], vocabulary) if name in grown else files[name]

        all_shapes = shapes | {name: (vocabulary, *shapes[name][1:]) for name in grown}
        all_shapes |= {name: tuple(tensor.shape) for name, tensor in others.items()}
        stored_dtype = _fill(model, _Tensors(all_shapes, read, f"{folder} and {sam2}"), dtype, device)
    new = {part for stored in _plan(model) if stored.name in grown for part in stored.parts}
    return LoadedModel(model, ModelInfo(folder, stored_dtype), frozenset(fresh.keys() | new))


def load_prompts(source: str | Path) -> Prompts:
    """Load the prompts of the model that `load_model` loads; no weights are read.

    Raises:
        UserError: the folder is no Sa2VA of this kind.
    """
    folder = resolve(source, weights=False)
    file = folder / "config.json"
    config = _sa2va_config(file)
    with _values_of(str(file)):
        return _prompts(Architecture(config, LARGE_SAM, str(file)), load_tokenizer(folder))


def load_parts_prompts(internvl: str | Path) -> Prompts:
    """Load the prompts of the model that `load_parts` makes; no weights are read.

    Raises:
        UserError: the folder is no InternVL of this kind.
    """
    folder = resolve(internvl, weights=False)
    file = folder / "config.json"
    internvl_config = _internvl_config(file)
    tokenizer = _extended_tokenizer(folder)
    with _values_of(str(file)):
        architecture = Architecture(_config_with_sam(internvl_config), LARGE_SAM, str(file))
        rows = max(architecture.language.vocab_size, len(tokenizer))
        return Prompts(tokenizer, architecture.template, rows)


def _prompts(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    return Prompts(tokenizer, architecture.template, architecture.language.vocab_size)


def _extended_tokenizer(internvl: Path) -> PreTrainedTokenizerBase:
    """Load an InternVL's tokenizer and add Sa2VA's tokens to it."""
    tokenizer = load_tokenizer(internvl)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    return tokenizer


def _sa2va_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if config.get("model_type") != "sa2va_chat":
        do = "an InternVL folder goes into model.internvl, with model.sam2"
        raise UserError(
            "not a Sa2VA",
            where=f"{file}, model_type",
            met=repr(config.get("model_type")),
            wanted="sa2va_chat",
            do=do,
        )
    return config


def _internvl_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if config.get("model_type") != "internvl_chat":
        raise UserError(
            "not an InternVL",
            where=f"{file}, model_type",
            met=repr(config.get("model_type")),
            wanted="internvl_chat",
            do="a Sa2VA folder goes into model.path; for others take OpenGVLab's layout",
        )
    return config


def _config_with_sam(internvl: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of the Sa2VA that is made of an InternVL with this one."""
    language = dict(internvl["llm_config"])
    kind = (language.get("architectures") or ["?"])[0]
    # Without its architecture, the official code takes a vision configuration for another model's.
    vision = {"architectures": ["InternVisionModel"], **internvl["vision_config"]}
    keys = ("force_image_size", "downsample_ratio", "ps_version", "select_layer")
    config = sa2va_config(vision, language, _TEMPLATES.get(kind, "qwen_chat"))
    return config | {key: internvl[key] for key in keys if key in internvl}


def read_sam(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a SAM 2 checkpoint by their names in the `sam2` package; only tensors are unpickled.

    Raises:
        UserError: the file is missing, or is not such a checkpoint.
    """
    try:
        check_regular(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted="a SAM 2 checkpoint (.pt)") from None
    except Exception as error:  # a damaged archive or pickle has many ways to fail
        refuse_pointers([path])
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError("not a checkpoint of tensors alone", where=str(path), met=reason) from None
    tensors = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError("not a SAM 2 checkpoint", where=str(path), wanted='a dict with the tensors under "model"')
    return {name: tensors[whole] for name, whole in without_prefix(tensors).items()}


def load_original_decoder(model: Sa2VA, sam2: Path) -> None:
    """Give a model a second mask decoder, SAM 2's own, from a checkpoint of SAM 2 (`.pt`).

    Raises:
        UserError: no such file, no SAM 2, or another SAM 2 than the one in the model.
    """
    tensors = read_sam(sam2)
    prefix = "sam_mask_decoder."
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    encoder = model.grounding_encoder
    expected = encoder.sam2_model.sam_mask_decoder.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    check_fit({name: tuple(tensor.shape) for name, tensor in expected.items()}, shapes, f"{sam2}, {prefix[:-1]}")
    for name in _NEVER_TRAINED:
        ours = encoder.sam2_model.state_dict()[name].float().cpu()
        # The model's may be rounded to bfloat16.
        if name not in tensors or not torch.allclose(ours, tensors[name].float(), rtol=2**-7, atol=1e-6):
            do = "give the checkpoint that the model was made of: of SAM 2, not 2.1, for the released ones"
            raise UserError("another SAM 2 than the model's", where=str(sam2), met=f"another {name}", do=do)
    decoder = encoder.add_original_decoder()
    decoder.load_state_dict({name: checked(found[name], like, name, str(sam2)) for name, like in expected.items()})


def save_model(
    model: Sa2VA, out: Path, *, info: ModelInfo = UNKNOWN, card: str = "", shard_bytes: int = 5 * 10**9
) -> list[str]:
    """Write a released folder: config.json, safetensors with an index where there are several, tokenizer, model card;
    and training.json, where `info` has something to put into it.

    Args:
        model: without adapters, see `trainer.model.adapters.merge_adapters`.
        out: a new folder. It gets its name once it is complete.
        info: about the weights that the model started from.
        card: the text of README.md.
        shard_bytes: upper limit of the size of a file.

    Returns:
        The names of tensors that the layout has no place for: what SAM 2.1 has for tracking.

    Raises:
        UserError: there is something at `out` already.
    """
    state = model.state_dict()
    stored: list[Stored] = []
    left_out: list[str] = []
    for tensor in _plan(model):
        if tensor.name.removeprefix(_SAM).startswith(SAM_21_ONLY):
            left_out.append(tensor.name)
        else:
            stored.append(tensor)

    def write_files(folder: Path) -> None:
        config = json.dumps(model.architecture.config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        save_tokenizer(model.prompts.tokenizer, info.folder, folder)
        if info.folder is not None:
            # The code beside the weights is copied for those who run it; it is not run here.
            for path in [*info.folder.glob("*.py"), info.folder / "generation_config.json"]:
                if path.exists():
                    shutil.copyfile(path, folder / path.name)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        write_training(folder, info)

    write_folder(out, {tensor.name: tensor.join(state) for tensor in stored}, write_files, shard_bytes)
    return left_out


def cast(model: Sa2VA, dtype: torch.dtype | None) -> Sa2VA:
    """Change the type of all floating point parameters in place. Buffers, such as rotary frequencies, stay float32."""
    for parameter in model.parameters():
        parameter.data = floating(parameter.data, dtype)
    return model


def hollow_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> Sa2VA:
    """Build a model without weights: frozen, in evaluation mode.

    Raises:
        UserError: no model can be built of the values in the files.
    """
    with _values_of(architecture.where):
        return Sa2VA(architecture, _prompts(architecture, tokenizer), hollow=True).requires_grad_(False).eval()


@contextmanager
def _values_of(where: str) -> Iterator[None]:
    """Raise `UserError` in place of what values of the file `where` make fail."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # transformers and sam2 check few of the values that they are given
        if not is_fault(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError("values that no model can be built of", where=where, met=reason) from None


def _plan(model: Sa2VA) -> list[Stored]:
    """Return the tensors that a released folder holds for `model`; of tied weights only the first."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if model.tied:
        del shapes[_HEAD]
    internlm2 = model.architecture.is_internlm2
    return plan(shapes, internlm2=internlm2, kv_heads=model.language_model.config.num_key_value_heads)


def _fill(model: Sa2VA, tensors: _Tensors, dtype: torch.dtype | None, device: torch.device | str) -> torch.dtype:
    """Load tensors into all of a hollow `model`; return the dtype of the token table in the file."""
    internlm2 = model.architecture.is_internlm2
    # A configuration that says "tied" is believed only where the file has no head.
    no_head = released_name(_HEAD, internlm2=internlm2) not in tensors.shapes
    tied = no_head and bool(model.architecture.config["llm_config"].get("tie_word_embeddings"))
    if tied:
        model.tie()
    stored = _plan(model)
    check_fit({s.name: s.shape for s in stored}, tensors.shapes, tensors.where)
    state: dict[str, Tensor] = {}
    present = model.state_dict()
    for item in stored:
        tensor = checked(tensors.read(item.name).to(device), present[item.parts[0]], item.name, tensors.where)
        state |= {name: floating(t, dtype) for name, t in item.split(tensor).items()}
    if tied:
        state[_HEAD] = state[_TABLE]
    model.load_state_dict(state, strict=True, assign=True)
    if tied:
        model.tie()
    model.to(device)  # the buffers that no file holds
    return tensors.read(released_name(_TABLE, internlm2=internlm2)).dtype


def _grow(table: Tensor, rows: int) -> Tensor:
    """Add rows around the mean of the others: a new token is neither likely nor unlikely (Hewitt 2021)."""
    mean = table.float().mean(0)
    spread = table.float().std(0)
    new = torch.empty(rows - len(table), table.shape[1])
    nn.init.normal_(new, std=0.1)
    return torch.cat([table, (mean + spread * new).to(table.dtype)])
