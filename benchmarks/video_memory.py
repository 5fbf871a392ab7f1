"""Peak memory of `cli.py predict --video`: a long mp4 against a short one, which is the reference of the same run.

    python -m benchmarks.video_memory [--frames 60 600] [--propagate tuned]

Each in a process of its own, on the CPU: the tiny model with random weights, whose answers are `[SEG]`s, on a picture
that moves, 64 x 96 pixels. Masks, overlay and answer are written as the verb writes them. The peak is that of the
resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from demo.make_sav import photograph
from inference.predictor import Predictor
from inference.run import predict
from inference.video import write_video
from trainer.model.sa2va import build
from trainer.released.loaded import LoadedModel

_QUESTION = "Please segment the cat."


def talkative_predictor(propagate: str) -> Predictor:
    """Return a predictor whose model answers each question with two `[SEG]`."""
    torch.manual_seed(0)
    model = build("tiny").eval().requires_grad_(False)
    if propagate == "sam2":
        model.grounding_encoder.add_original_decoder()
    head = model.language_model.lm_head
    head.weight.zero_()
    prompts = model.prompts
    rows = prompts.padded([prompts.ask("x", _QUESTION)], model.device, left=True)
    visual_tokens = torch.randn(1, 256, model.mlp1[0].normalized_shape[0])
    embeddings = model.embed_rows(rows, visual_tokens, torch.tensor([[0]]))
    head.weight[prompts.seg] = model.run_language_model(embeddings, rows.attention, rows.positions)[0, -1]
    return Predictor(LoadedModel(model), max_new_tokens=2, propagate=propagate)


def measure(frames: int, propagate: str) -> dict[str, float]:
    """Predict a video of `frames` frames in this process; return seconds, objects, and bytes of the peak."""
    torch.set_num_threads(1)
    picture = np.asarray(photograph("chelsea"))[:200, :300]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        with write_video(video, Fraction(10)) as add:
            for n in range(frames):
                add(np.ascontiguousarray(np.roll(picture, n, axis=1)[40:104, 40:136]))
        started = time.perf_counter()
        for _ in predict(lambda: talkative_predictor(propagate), Path(folder) / "out", video=video, text=_QUESTION):
            pass
        seconds = time.perf_counter() - started
        answered = json.loads((Path(folder) / "out" / "long.json").read_text("utf-8"))
    assert len(answered["frames"]) == frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "objects": answered["objects"], "peak": peak}


def main() -> None:
    """Measure each number of frames in a process of its own, and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[60, 600])
    parser.add_argument("--propagate", choices=("tuned", "sam2"), default="tuned")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.frames[0], given.propagate)))
        return
    reference = 0.0
    for frames in given.frames:
        command = [sys.executable, "-m", "benchmarks.video_memory", "--child", "--frames", str(frames)]
        done = subprocess.run([*command, "--propagate", given.propagate], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        reference = reference or found["peak"]
        times = f"{found['peak'] / reference:.3f} of the first"
        rate = f"{frames / found['seconds']:.2f} frames/s"
        print(f"{frames} frames, {found['objects']} objects: peak {found['peak'] / 1e6:,.0f} MB, {times}; {rate}")


if __name__ == "__main__":
    main()
