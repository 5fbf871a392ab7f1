"""Write a run, or a released folder, as a released folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from shards.errors import UserError
from trainer.config import ModelConfig
from trainer.model.adapters import merge_adapters
from trainer.model.sa2va import Sa2VA
from trainer.released.folder import cast, load_model, save_model
from trainer.released.loaded import LoadedModel
from trainer.released.training import VIDEO_FRAMES_KEY, VIDEO_FRAMES_NUMBER_KEY
from trainer.trained import ORIGIN, Origin, load_trained

RELEASED = "config.json"
CHECKPOINT = "checkpoint"


def load_any(path: Path, dtype: torch.dtype | None = None, teacher: bool = False) -> tuple[LoadedModel, Origin | None]:
    """Load the model of a run's folder, of a checkpoint in it, or of a released folder; adapters are merged.

    Args:
        path: the folder.
        dtype: of all floating point weights; None keeps that of the files, as the base of a run had it.
        teacher: load the weights of the run's teacher.

    Raises:
        UserError: there is no teacher, or it is none of these, or cannot be loaded.
    """
    for folder in (path, path / CHECKPOINT):
        if (folder / ORIGIN).exists():
            loaded, origin = load_trained(folder, teacher=teacher)
            merge_adapters(loaded.model)
            cast(loaded.model, dtype or loaded.info.dtype)
            if origin.frames is not None and origin.frames > 1:
                # Trainings draw frames anew in each epoch, over the whole video: spread ones are most like them.
                shown = {VIDEO_FRAMES_KEY: "uniform", VIDEO_FRAMES_NUMBER_KEY: origin.frames}
                architecture = loaded.model.architecture
                loaded.model.architecture = replace(architecture, config={**architecture.config, **shown})
            return loaded, origin
    if not (path / RELEASED).exists():
        expected = f"a run's folder (it holds {CHECKPOINT}/{ORIGIN}) or a released folder ({RELEASED})"
        raise UserError("no model here", where=str(path), wanted=expected)
    if teacher:
        raise UserError("a released folder has no teacher", where=str(path), wanted="a run's folder, or a checkpoint")
    return load_model(path, dtype=dtype), None


def export(checkpoint: Path, out: Path, dtype: torch.dtype | None = None, teacher: bool = False) -> str:
    """Write `out` in the released layout, and return a summary to show.

    Args:
        checkpoint: a run's folder, or a released one.
        out: a new folder.
        dtype: of all floating point weights; None keeps that of the files, as the base of a run had it.
        teacher: write the weights of the run's teacher in place of those that trained; the model card says so.

    Raises:
        UserError: `checkpoint` cannot be loaded, or there is something at `out`.
    """
    loaded, origin = load_any(checkpoint, dtype, teacher)
    left_out = save_model(loaded.model, out, info=loaded.info, card=model_card(loaded.model, origin, teacher))
    files = sorted(out.glob("*.safetensors"))
    summary = f"{out}: {sum(f.stat().st_size for f in files):,} bytes of weights in {len(files)} file(s)"
    if left_out:
        summary += f"\nleft out, because the layout has no place for what SAM 2.1 alone holds: {', '.join(left_out)}"
    return summary


def model_card(model: Sa2VA, origin: Origin | None, teacher: bool = False) -> str:
    """Return what the model is and what it was trained on, as Markdown; `teacher`: its weights are the teacher's."""
    architecture = model.architecture
    vision = architecture.vision
    language = architecture.config["llm_config"]
    lines = [
        "# Sa2VA",
        "",
        "Segments what a text names, describes what a mask marks: InternVL joined with SAM 2 through `[SEG]`.",
        "",
        "| | |",
        "|---|---|",
        f"| vision tower | InternViT, {vision.num_hidden_layers} layers, width {vision.hidden_size} |",
        f"| language model | {language['architectures'][0]}, {language['num_hidden_layers']} layers, "
        f"width {language['hidden_size']} |",
        f"| SAM 2 | `{architecture.sam.sam_config}` |",
        f"| parameters | {sum(p.numel() for p in model.parameters()):,} |",
    ]
    if teacher:
        lines.append("| weights | of the teacher: the moving average (EMA) of those that trained |")
    if origin:
        lora = f" (r {origin.lora.r}, alpha {origin.lora.alpha})" if "lora" in origin.trainable else ""
        lines += [
            f"| started from | {_started_from(origin.model)} |",
            f"| trained parts | {', '.join(origin.trainable)}{lora} |",
            f"| training | objective {origin.objective}, {origin.step} steps of {origin.batch} samples per process |",
            f"| recipe of the tensors | {origin.recipe or 'unknown'} |",
            *(f"| data | {line} |" for line in origin.data),
        ]
    return "\n".join(lines) + "\n"


def _started_from(model: ModelConfig) -> str:
    paths = {k: Path(v).name for k, v in asdict(model).items() if k in ("path", "internvl", "sam2") and v}
    return ", ".join(f"{k} `{v}`" for k, v in paths.items()) or f"random weights of the size `{model.preset}`"
