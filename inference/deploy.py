"""Write a trained model for deployment: the mask branch as ONNX, or the language model with int8 weights."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.compare_masks import Example
from inference.onnx_export import export_onnx
from inference.pictures import picture_files, read_picture
from inference.quantise import export_int8
from inference.run import read_questions
from shards.errors import UserError
from trainer.export import load_any, model_card


def export_graphs(checkpoint: Path, out: Path, images: Path | None) -> str:
    """Write the mask branch as ONNX and check it with onnxruntime on the pictures in `images`; return the report.

    Raises:
        UserError: no pictures, or the graphs do not agree with PyTorch.
    """
    if images is None:
        do = "give --images: the graphs are compared with PyTorch on real pictures"
        raise UserError("no pictures to compare on", wanted="a folder", do=do)
    pictures = [read_picture(path) for path in picture_files(images)]
    return export_onnx(load_any(checkpoint)[0], out, pictures).table()


def export_quantised(
    checkpoint: Path, out: Path, images: Path | None, texts: Path | None, dtype: torch.dtype | None
) -> str:
    """Write the model with int8 weights in its language model; return its sizes before and after, and changes of masks.

    Args:
        checkpoint: folder of a run, or a released one.
        out: a new folder.
        images: folder of pictures; masks are compared only if `texts` is given too.
        texts: file with lines of FILE, a tab, a question, as in prediction.
        dtype: dtype of all other weights; None keeps that of the files.

    Raises:
        UserError: only one of `images` and `texts` is given; and as `export_int8`.
    """
    if (images is None) != (texts is None):
        raise UserError("half of what masks are compared on", wanted="both --images and --texts")
    questions = read_questions(images, texts) if images and texts else []
    examples = [Example(q.name, read_picture(q.path), q.text) for q in questions]
    loaded, origin = load_any(checkpoint, dtype)
    return export_int8(loaded, out, examples, model_card(loaded.model, origin))
