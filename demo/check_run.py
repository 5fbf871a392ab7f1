"""Fail unless a run learnt the dual loop: its held-out masks beat every constant, its captions carry something.

python demo/check_run.py runs/demo
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from constants import constants

from trainer.config import load_config

_MARGIN = 1.1  # the model's held-out cycle IoU over the best constant's, at least


def main(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [record["held_out/dual/mask_loss"] for record in records if "held_out/dual/mask_loss" in record]
    print(f"held-out mask loss (BCE + Dice): {losses[0]:.3f} before training, {losses[-1]:.3f} after")
    judged = [record for record in records if "held_out/dual/iou" in record][-1]
    iou, gap = judged["held_out/dual/iou"], judged["held_out/dual/swap_gap"]
    print("mask -> caption -> mask on pairs that were held out, IoU and Dice:")
    print(f"  the model {iou:.3f}, {judged['held_out/dual/dice']:.3f}; with another object's caption {iou - gap:.3f}")
    best = 0.0
    for name, values in constants(load_config([str(folder / "config.yaml")])).items():
        print(f"  {name} {values['iou']:.3f}, {values['dice']:.3f}")
        best = max(best, values["iou"])
    print(f"text -> mask on pictures that were held out: IoU {judged['held_out/segment/iou']:.3f}")
    if not iou > _MARGIN * best:
        sys.exit(f"error: {folder}: the model does not beat constants; wanted {_MARGIN} times {best:.3f} at least")
    if not gap > 0:
        sys.exit(f"error: {folder}: captions carry nothing: the swap gap is {gap:.3f}; wanted above 0")
    page = (folder / "report.html").read_text("utf-8")
    if re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page):
        sys.exit(f"error: {folder / 'report.html'}: it refers to another file or to the network")
    print(f"report: {(folder / 'report.html').resolve()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
