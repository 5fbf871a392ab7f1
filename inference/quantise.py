"""int8 weights for the language model: in memory, and as a folder of safetensors.

Weight-only, symmetric, one scale per row (output channel), through torchao. The folder holds the model's own tensor
names. An int8 weight `NAME` is stored as `NAME_int8` (N, K) int8 and `NAME_scale` (N, 1) float32; the weight is their
product. torchao's storage in safetensors is a prototype that names torchao's classes; this layout does not.

All linear layers are quantised. The head is too (it is a fifth of the language model in the 1B size, and changes the
logits by a sixth of what the other layers change, at random weights), unless it is tied to the token table: then it
takes no memory, and in int8 it would be a second copy. The table is not: torchao restores all of it for one token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.compare_masks import Example, compare, masks_of
from shards.errors import UserError
from shards.extras import require
from trainer.model.adapters import has_adapters
from trainer.model.architecture import Architecture, sam_of
from trainer.model.sa2va import Sa2VA
from trainer.released.files import TensorFolder, check_fit, checked, read_json, resolve, write_folder
from trainer.released.folder import hollow_model
from trainer.released.loaded import UNKNOWN, LoadedModel, ModelInfo
from trainer.released.names import ORIGINAL
from trainer.released.settings import check_settings
from trainer.released.tokenizer import load_tokenizer, save_tokenizer
from trainer.released.training import read_training, write_training

MODEL_TYPE = "sa2va_chat_int8"
"""`model_type` in the folder's `config.json`, so that nothing takes it for a released one."""
INT8 = "_int8"
SCALE = "_scale"
_PART = "language_model."
_HEAD = "lm_head"
_TABLE = "model.embed_tokens.weight"
_SAM = "grounding_encoder.sam2_model."


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights before and after."""

    language_model: tuple[int, int]
    whole_model: tuple[int, int]

    def table(self) -> str:
        """Return the sizes as text."""
        lines = [f"{'bytes':<16} {'before':>16} {'int8':>16} {'share':>7}"]
        for name, (before, after) in vars(self).items():
            lines.append(f"{name.replace('_', ' '):<16} {before:>16,} {after:>16,} {after / before:>7.1%}")
        return "\n".join(lines)


def quantise_language_model(model: Sa2VA) -> Sizes:
    """Replace the weights of the language model's linear layers by int8 ones, in place, layer by layer.

    The model still computes in the dtype of its input. A weight's row w becomes round(w / s) with
    s = max |w| / 127.5, within -128..127; s is rounded to the weight's dtype, in which torchao multiplies by it.

    Raises:
        UserError: torchao is missing, adapters are not merged, or the weights are int8 already.
    """
    require("deploy", "torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if has_adapters(model):
        raise UserError("adapters in the language model", do="merge them first")
    if is_quantised(model):
        raise UserError("the language model's weights are int8 already", do="start from the original model")
    before = _bytes(model)
    with torch.no_grad():
        chosen = _linears(model)
        quantize_(
            model.language_model,
            Int8WeightOnlyConfig(set_inductor_config=False),  # the settings of a compiler that is not used here
            filter_fn=lambda module, name: name in chosen,
        )
    after = _bytes(model)
    return Sizes(*zip(before, after, strict=True))


def export_int8(loaded: LoadedModel, out: Path, examples: Sequence[Example] = (), card: str = "") -> str:
    """Quantise the model in place, write it to `out`, and return what changed: sizes, and the masks of `examples`.

    Raises:
        UserError: as `quantise_language_model` and `save_quantised`.
    """
    before = masks_of(loaded, examples)
    tables = [quantise_language_model(loaded.model).table()]
    if examples:
        tables.append(compare(examples, before, masks_of(loaded, examples)).table())
    save_quantised(loaded.model, out, info=loaded.info, card=card)
    return "\n\n".join(tables)


def is_quantised(model: Sa2VA) -> bool:
    """Return whether `quantise_language_model` or `load_quantised` made the language model's weights."""
    return any(hasattr(layer.weight, "qdata") for layer in _linears(model).values())


def tensors_of(model: Sa2VA) -> dict[str, Tensor]:
    """Return the model's tensors as a folder stores them: plain, and each tied tensor once."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if model.tied and name == f"{_PART}{_HEAD}.weight":
            continue
        if hasattr(tensor, "qdata"):
            tensors |= {name + INT8: tensor.qdata, name + SCALE: tensor.scale}
        else:
            tensors[name] = tensor
    return tensors


def save_quantised(model: Sa2VA, out: Path, *, info: ModelInfo = UNKNOWN, card: str = "") -> None:
    """Write a folder for `load_quantised`.

    It holds config.json, safetensors, the tokenizer, README.md and, if the recipe is known, training.json.

    Args:
        model: a model after `quantise_language_model`.
        out: a new folder. It gets its name only when it is complete.
        info: what is known of the weights that the model started from.
        card: the text of README.md.

    Raises:
        UserError: the weights are not int8, or there is something at `out` already.
    """
    if not is_quantised(model):
        raise UserError("the language model's weights are not int8", do="call quantise_language_model first")

    def files(folder: Path) -> None:
        config = model.architecture.config | {"model_type": MODEL_TYPE, "tie_word_embeddings": model.tied}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_tokenizer(model.prompts.tokenizer, info.folder, folder)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        write_training(folder, info)

    write_folder(out, tensors_of(model), files)


def is_int8_folder(folder: Path) -> bool:
    """Return whether `save_quantised` wrote `folder`."""
    return read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def load_quantised(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Load the model from a folder of `save_quantised`: frozen, in evaluation mode, bit-equal to what was saved.

    Raises:
        UserError: torchao is missing, or the folder is incomplete or of another kind.
    """
    require("deploy", "torchao")
    where = resolve(folder) / "config.json"
    config = read_json(where)
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(
            "not an int8 Sa2VA", where=f"{where}, model_type", met=repr(config.get("model_type")), wanted=MODEL_TYPE
        )
    config["model_type"] = "sa2va_chat"
    with TensorFolder(folder) as files:
        shapes = files.shapes
        check_settings(config, shapes, str(where))
        sam = sam_of({n.removeprefix(_SAM): s for n, s in shapes.items() if n.startswith(_SAM)}, str(folder))
        architecture = Architecture(config, sam, str(where))
        model = hollow_model(architecture, load_tokenizer(folder))
        if any(name.startswith(ORIGINAL) for name in shapes):
            model.grounding_encoder.add_original_decoder()
        tied = bool(config.get("tie_word_embeddings"))
        if tied:
            model.tie()
        check_fit(_shapes(model), shapes, str(folder))
        expected = model.state_dict()
        tensors = {}
        for name in shapes:
            like = torch.empty(0, dtype=torch.int8) if name.endswith(INT8) else expected.get(name, torch.empty(0))
            tensors[name] = checked(files[name].to(device), like, name, str(folder))
    recipe, trained_on = read_training(folder)
    info = ModelInfo(folder, tensors[_PART + _TABLE].dtype, recipe, trained_on)
    linears = _linears(model)
    for name, layer in linears.items():
        full = f"{_PART}{name}.weight"
        layer.weight = _int8(tensors.pop(full + INT8), tensors.pop(full + SCALE), tensors[_PART + _TABLE].dtype)
    kept = {f"{_PART}{name}.weight" for name in linears} | ({f"{_PART}{_HEAD}.weight"} if tied else set())
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    assert set(missing) == kept and not unexpected, (missing, unexpected)
    if tied:
        model.tie()
    return LoadedModel(model.to(device), info)  # the buffers that no file holds


def _linears(model: Sa2VA) -> dict[str, nn.Linear]:
    """Return the layers that become int8, by their names in the language model."""
    modules = model.language_model.named_modules()
    return {n: m for n, m in modules if isinstance(m, nn.Linear) and not (model.tied and n == _HEAD)}


def _int8(qdata: Tensor, scale: Tensor, dtype: torch.dtype) -> nn.Parameter:
    from torchao.quantization import Int8Tensor

    zero = torch.zeros_like(scale, dtype=torch.int8)
    return nn.Parameter(Int8Tensor(qdata, scale, [1, qdata.shape[1]], dtype, zero_point=zero), requires_grad=False)


def _shapes(model: Sa2VA) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a folder must hold for `model`; its own may be on the meta device."""
    int8 = {f"{_PART}{name}.weight" for name in _linears(model)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name in int8:
            shapes |= {name + INT8: shape, name + SCALE: (shape[0], 1)}
        elif not (model.tied and name == f"{_PART}{_HEAD}.weight"):
            shapes[name] = shape
    return shapes


def _bytes(model: Sa2VA) -> tuple[int, int]:
    """Return the bytes of the language model, and of the whole model."""
    sizes = {name: tensor.nbytes for name, tensor in tensors_of(model).items()}
    return sum(size for name, size in sizes.items() if name.startswith(_PART)), sum(sizes.values())
