"""The mask branch as ONNX: pictures to features, features and language embeddings to masks.

The language model stays in PyTorch. PyTorch's TorchScript exporter writes the graphs: its newer one, which takes
Python apart, gives the same numbers, but needs ten times as long for it. A trace may hold as constants what should stay
free, so onnxruntime runs both graphs on real pictures, with other numbers of pictures and objects than were traced, and
they stand under their names only where they agree with PyTorch.
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

from inference.packages import need
from inference.recipes import recipe_of
from pipeline import resize
from pipeline.resize import UInt8
from shards.errors import UserError
from trainer.model.grounding import IMAGE_SIZE, GroundingEncoder, SamFeatures
from trainer.model.sa2va import Sa2VA
from trainer.released.files import new_folder
from trainer.released.loaded import LoadedModel
from trainer.released.training import write_training

IMAGE_ENCODER, MASK_DECODER = "image_encoder.onnx", "mask_decoder.onnx"
FEATURES = ("embedding", "high_256", "high_128")
"""(B, C, 64, 64), (B, C / 8, 256, 256) and (B, C / 4, 128, 128) float32: outputs of one graph, inputs of the other."""
LANGUAGE, LOGITS = "language_embeddings", "mask_logits"
BOUND = 1e-4
"""Largest difference that is let pass, as a share of the largest magnitude that PyTorch gives."""
_OPSET = 18
_OBJECTS = (1, 2, 5)
_TRACED = 3

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """onnxruntime against PyTorch, over all pictures."""

    output: str
    largest: float
    """Difference of one element."""
    magnitude: float
    """Of PyTorch's largest element."""

    @property
    def share(self) -> float:
        return self.largest / self.magnitude if self.magnitude else float(self.largest > 0)


@dataclass(frozen=True)
class OnnxReport:
    """What was written and how well it agrees with PyTorch."""

    folder: Path
    sizes: Mapping[str, int]
    """Bytes of each file."""
    pictures: int
    differences: Sequence[Difference]
    flipped: float
    """Share of mask pixels that are on the other side of 0."""

    def table(self) -> str:
        lines = [f"{self.folder / name}: {size:,} bytes" for name, size in self.sizes.items()]
        lines.append(f"onnxruntime against PyTorch on {self.pictures} picture(s), float32:")
        lines.append(f"{'output':<12} {'largest difference':>18} {'largest magnitude':>18} {'share':>8}")
        for d in self.differences:
            lines.append(f"{d.output:<12} {d.largest:>18.2e} {d.magnitude:>18.4g} {d.share:>8.1e}")
        lines.append(f"mask pixels on the other side of 0: {self.flipped:.6%}")
        return "\n".join(lines)


class ImageEncoder(nn.Module):
    """(B, 3, 1024, 1024) uint8 to `FEATURES`."""

    def __init__(self, encoder: GroundingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, g_pixel_values: Tensor) -> tuple[Tensor, ...]:
        looked = self.encoder.encode(g_pixel_values)
        return looked.embedding, *looked.high


class MaskDecoder(nn.Module):
    """`FEATURES` of one picture and embeddings (N, C) to mask logits (N, 256, 256) float32."""

    def __init__(self, encoder: GroundingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, embedding: Tensor, high_256: Tensor, high_128: Tensor, language_embeddings: Tensor) -> Tensor:
        first = torch.zeros(language_embeddings.shape[0], dtype=torch.int64)
        return self.encoder.decode(SamFeatures(embedding, [high_256, high_128]), first, language_embeddings)


@torch.no_grad()
def export_onnx(loaded: LoadedModel, out: Path, pictures: Sequence[UInt8], *, bound: float = BOUND) -> OnnxReport:
    """Write `image_encoder.onnx` and `mask_decoder.onnx` into `out`, float32, once they agree with PyTorch.

    `training.json` beside them holds the recipe by which pictures become `g_pixel_values`, where the model has one.

    image_encoder: `g_pixel_values` (B, 3, 1024, 1024) uint8 to `FEATURES`; the normalisation is inside.
    mask_decoder: `FEATURES` of one picture and `language_embeddings` (N, C) float32, what `text_hidden_fcs` gives for
    N >= 1 objects, to `mask_logits` (N, 256, 256) float32: of the three masks the one of highest predicted IoU.
    B and N are free. The largest SAM 2 takes 0.9 GB, and one ONNX file holds up to 2.

    Args:
        loaded: a model in any precision, on any device; it is not changed.
        out: a new folder. It stands under its name only when both files are written and checked.
        pictures: to compare on, (H, W, 3) uint8 RGB of any size; resized by the model's own recipe.
        bound: of the difference, see `BOUND`.

    Raises:
        UserError: packages are missing, no pictures, something is at `out`, or the difference exceeds `bound`.
    """
    need("onnx", "onnxruntime")
    if not pictures:
        raise UserError("no pictures to compare on", wanted="at least one")
    encoder = copy.deepcopy(loaded.model.grounding_encoder).cpu().float().eval().requires_grad_(False)
    recipe = recipe_of(loaded)
    sizes = [resize.picture(picture, IMAGE_SIZE, recipe) for picture in pictures]
    images = torch.from_numpy(np.stack(sizes))
    language = _language_embeddings(loaded.model, max(_OBJECTS))
    with new_folder(out) as folder:
        twice = images[:1].expand(2, -1, -1, -1).contiguous()
        _write(ImageEncoder(encoder), (twice,), folder / IMAGE_ENCODER, ["g_pixel_values"], FEATURES, "pictures")
        features = ImageEncoder(encoder)(images[:1])
        inputs, traced = [*FEATURES, LANGUAGE], (*features, language[:_TRACED])
        _write(MaskDecoder(encoder), traced, folder / MASK_DECODER, inputs, [LOGITS], "objects")
        differences, flipped = _compare(encoder, folder, images, language)
        for met in differences:
            if not met.share <= bound:  # also where it is not a number
                raise UserError(
                    "onnxruntime and PyTorch differ",
                    where=f"{out}, {met.output}",
                    met=f"{met.largest:.2e} where the largest value is {met.magnitude:.4g}, a share of {met.share:.1e}",
                    wanted=f"at most {bound:.0e}",
                    do="nothing was written",
                )
        write_training(folder, loaded.info)
        written = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return OnnxReport(out, written, len(images), differences, flipped)


def _language_embeddings(model: Sa2VA, count: int) -> Tensor:
    """(count, C) float32 of the magnitude that the language model's states give, for any model the same draws."""
    norm, project = model.language_model.model.norm, model.text_hidden_fcs
    draws = torch.randn(count, model.embedding.embedding_dim, generator=torch.Generator().manual_seed(0))
    parameter = next(project.parameters())
    return project(norm(draws.to(parameter))).float().cpu()


def _write(
    module: nn.Module, args: tuple[Tensor, ...], path: Path, inputs: Sequence[str], outputs: Sequence[str], free: str
) -> None:
    """Trace `module` into `path`; the first size of its last input, and of what it gives, stays free."""
    with warnings.catch_warnings():
        # Of the exporter's age, and of each size that it takes for a constant: those of 1024 x 1024 are.
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
    """Both graphs, one after the other, against PyTorch: the largest differences, and the share of flipped pixels."""
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])

    encode, decode = session(IMAGE_ENCODER), session(MASK_DECODER)
    met: dict[str, list[tuple[float, float]]] = {name: [] for name in (*FEATURES, LOGITS)}
    flipped = []

    def note(name: str, found: Float32, wanted: Tensor) -> None:
        if found.shape != wanted.shape:
            raise UserError(
                "another shape", where=f"{folder}, {name}", met=str(found.shape), wanted=str(tuple(wanted.shape))
            )
        met[name].append((float(np.abs(found - wanted.numpy()).max()), float(wanted.abs().max())))

    for image in images.split(1):
        features = ImageEncoder(encoder)(image)
        found = encode.run(None, {"g_pixel_values": image.numpy()})
        for name, array, tensor in zip(FEATURES, found, features, strict=True):
            note(name, array, tensor)
        for count in _OBJECTS:
            chosen = language[:count]
            given = dict(zip(FEATURES, found, strict=True)) | {LANGUAGE: chosen.numpy()}
            (masks,) = decode.run(None, given)
            logits = MaskDecoder(encoder)(*features, chosen)
            note(LOGITS, masks, logits)
            flipped.append(np.mean((masks > 0) != (logits.numpy() > 0)))
    largest = {name: np.array(values).max(0) for name, values in met.items()}
    return [Difference(name, *map(float, values)) for name, values in largest.items()], float(np.mean(flipped))
