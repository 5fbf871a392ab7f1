"""Export the mask branch to ONNX: one graph from pictures to features, one from features and embeddings to masks.

The language model stays in PyTorch. PyTorch's TorchScript exporter writes the graphs: the newer exporter gives the same
numbers but takes ten times as long. A trace may fix sizes that should stay free. So onnxruntime runs both graphs on
real pictures, with other numbers of pictures and objects than were traced; the files are kept only if they agree with
PyTorch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.recipes import recipe_of
from pipeline import resize
from pipeline.resize import UInt8
from shards.errors import UserError
from shards.extras import require
from trainer.model.grounding import IMAGE_SIZE, GroundingEncoder, SamFeatures
from trainer.model.sa2va import Sa2VA
from trainer.released.files import new_folder
from trainer.released.loaded import LoadedModel
from trainer.released.training import write_training

IMAGE_ENCODER = "image_encoder.onnx"
MASK_DECODER = "mask_decoder.onnx"
FEATURES = ("embedding", "high_256", "high_128")
"""(B, C, 64, 64), (B, C / 8, 256, 256) and (B, C / 4, 128, 128) float32: outputs of one graph, inputs of the other."""
LANGUAGE = "language_embeddings"
LOGITS = "mask_logits"
BOUND = 1e-4
"""Largest accepted difference, relative to the largest magnitude of PyTorch's values."""
_OPSET = 18
_OBJECTS = (1, 2, 5)
_TRACED = 3

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """Difference between onnxruntime and PyTorch in one output, over all pictures."""

    output: str
    largest: float
    """Largest absolute difference of an element."""
    magnitude: float
    """Largest magnitude of an element in PyTorch."""

    @property
    def share(self) -> float:
        """Largest difference relative to the largest magnitude."""
        return self.largest / self.magnitude if self.magnitude else float(self.largest > 0)


@dataclass(frozen=True)
class OnnxReport:
    """Files that were written, and how well they agree with PyTorch."""

    folder: Path
    sizes: Mapping[str, int]
    """Bytes of each file."""
    pictures: int
    differences: Sequence[Difference]
    flipped: float
    """Share of mask pixels whose logit has another sign than in PyTorch."""

    def table(self) -> str:
        """Return the report as text."""
        lines = [f"{self.folder / name}: {size:,} bytes" for name, size in self.sizes.items()]
        lines.append(f"onnxruntime against PyTorch on {self.pictures} picture(s), float32:")
        lines.append(f"{'output':<12} {'largest difference':>18} {'largest magnitude':>18} {'share':>8}")
        for d in self.differences:
            lines.append(f"{d.output:<12} {d.largest:>18.2e} {d.magnitude:>18.4g} {d.share:>8.1e}")
        lines.append(f"mask pixels on the other side of 0: {self.flipped:.6%}")
        return "\n".join(lines)


class ImageEncoder(nn.Module):
    """Encode pictures (B, 3, 1024, 1024) uint8 to `FEATURES`."""

    def __init__(self, encoder: GroundingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, g_pixel_values: Tensor) -> tuple[Tensor, ...]:
        sam_features = self.encoder.encode(g_pixel_values)
        return sam_features.embedding, *sam_features.high


class MaskDecoder(nn.Module):
    """Decode `FEATURES` of one picture and embeddings (N, C) to mask logits (N, 256, 256) float32."""

    def __init__(self, encoder: GroundingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, embedding: Tensor, high_256: Tensor, high_128: Tensor, language_embeddings: Tensor) -> Tensor:
        first = torch.zeros(language_embeddings.shape[0], dtype=torch.int64)
        return self.encoder.decode(SamFeatures(embedding, [high_256, high_128]), first, language_embeddings)


@torch.no_grad()
def export_onnx(loaded: LoadedModel, out: Path, pictures: Sequence[UInt8], *, bound: float = BOUND) -> OnnxReport:
    """Write `image_encoder.onnx` and `mask_decoder.onnx`, float32, into `out` if they agree with PyTorch.

    `training.json` beside them holds the recipe by which pictures become `g_pixel_values`, if the model has one.

    image_encoder: `g_pixel_values` (B, 3, 1024, 1024) uint8 to `FEATURES`; the graph normalises.
    mask_decoder: `FEATURES` of one picture and `language_embeddings` (N, C) float32, the output of `text_hidden_fcs`
    for N >= 1 objects, to `mask_logits` (N, 256, 256) float32: of the three masks the one of highest predicted IoU.
    B and N are free. The largest SAM 2 takes 0.9 GB; an ONNX file may hold 2 GB.

    Args:
        loaded: a model of any dtype, on any device; it is not changed.
        out: a new folder. It gets its name only when both files are written and checked.
        pictures: pictures to compare on, (H, W, 3) uint8 RGB of any size; resized by the model's own recipe.
        bound: largest accepted difference, see `BOUND`.

    Raises:
        UserError: packages are missing, no pictures, `out` exists, or the difference exceeds `bound`.
    """
    require("deploy", "onnx", "onnxruntime")
    if not pictures:
        raise UserError("no pictures to compare on", wanted="at least one")
    encoder = copy.deepcopy(loaded.model.grounding_encoder).cpu().float().eval().requires_grad_(False)
    recipe = recipe_of(loaded)
    images = torch.from_numpy(np.stack([resize.picture(picture, IMAGE_SIZE, recipe) for picture in pictures]))
    language = _language_embeddings(loaded.model, max(_OBJECTS))
    with new_folder(out) as folder:
        twice = images[:1].expand(2, -1, -1, -1).contiguous()
        _write(ImageEncoder(encoder), (twice,), folder / IMAGE_ENCODER, ["g_pixel_values"], FEATURES, "pictures")
        features = ImageEncoder(encoder)(images[:1])
        traced = (*features, language[:_TRACED])
        _write(MaskDecoder(encoder), traced, folder / MASK_DECODER, [*FEATURES, LANGUAGE], [LOGITS], "objects")
        differences, flipped = _compare(encoder, folder, images, language)
        for found in differences:
            if not found.share <= bound:  # NaN too
                raise UserError(
                    "onnxruntime and PyTorch differ",
                    where=f"{out}, {found.output}",
                    met=f"{found.largest:.2e} where the largest value is {found.magnitude:.4g}, a share of "
                    f"{found.share:.1e}",
                    wanted=f"at most {bound:.0e}",
                    do="nothing was written",
                )
        write_training(folder, loaded.info)
        written = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return OnnxReport(out, written, len(images), differences, flipped)


def _language_embeddings(model: Sa2VA, count: int) -> Tensor:
    """Return (count, C) float32 of a realistic magnitude: normalised and projected draws, the same for every model."""
    draws = torch.randn(count, model.embedding.embedding_dim, generator=torch.Generator().manual_seed(0))
    states = model.language_model.model.norm(draws.to(next(model.text_hidden_fcs.parameters())))
    return model.text_hidden_fcs(states).float().cpu()


def _write(
    module: nn.Module, args: tuple[Tensor, ...], path: Path, inputs: Sequence[str], outputs: Sequence[str], free: str
) -> None:
    """Trace `module` into `path`; the first dimension of its last input and of its outputs stays free."""
    with warnings.catch_warnings():
        # About the exporter's age, and about each size that it makes a constant: 1024 x 1024 is constant.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            args,
            str(path),
            input_names=[*inputs],
            output_names=[*outputs],
            dynamic_axes={name: {0: free} for name in (inputs[-1], *outputs)},
            opset_version=_OPSET,
            dynamo=False,
        )


def _compare(
    encoder: GroundingEncoder, folder: Path, images: Tensor, language: Tensor
) -> tuple[list[Difference], float]:
    """Run both graphs and PyTorch on `images`; return the largest differences, and the share of flipped pixels."""
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])

    encode = session(IMAGE_ENCODER)
    decode = session(MASK_DECODER)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in (*FEATURES, LOGITS)}
    flipped = []

    def measure(name: str, found: Float32, expected: Tensor) -> None:
        if found.shape != expected.shape:
            raise UserError(
                "another shape", where=f"{folder}, {name}", met=str(found.shape), wanted=str(tuple(expected.shape))
            )
        measured[name].append((float(np.abs(found - expected.numpy()).max()), float(expected.abs().max())))

    for image in images.split(1):
        features = ImageEncoder(encoder)(image)
        found = encode.run(None, {"g_pixel_values": image.numpy()})
        for name, array, tensor in zip(FEATURES, found, features, strict=True):
            measure(name, array, tensor)
        for count in _OBJECTS:
            chosen = language[:count]
            inputs = dict(zip(FEATURES, found, strict=True)) | {LANGUAGE: chosen.numpy()}
            (masks,) = decode.run(None, inputs)
            logits = MaskDecoder(encoder)(*features, chosen)
            measure(LOGITS, masks, logits)
            flipped.append(np.mean((masks > 0) != (logits.numpy() > 0)))
    largest = {name: np.array(values).max(0) for name, values in measured.items()}
    return [Difference(name, *map(float, values)) for name, values in largest.items()], float(np.mean(flipped))
