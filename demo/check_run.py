"""Fail unless a run learnt the dual loop: its held-out masks beat every constant, its captions carry information.

python demo/check_run.py runs/demo
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from constants import constants

from trainer.config import load_config


def main(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").split("\n") if line]
    losses = [record["held_out/dual/mask_loss"] for record in records if "held_out/dual/mask_loss" in record]
    print(f"held-out mask loss (BCE + Dice): {losses[0]:.3f} before training, {losses[-1]:.3f} after")
    judged = [record for record in records if "held_out/dual/iou" in record][-1]
    iou = judged["held_out/dual/iou"]
    gap = judged["held_out/dual/swap_gap"]
    print("mask -> caption -> mask on pairs that were held out, IoU and Dice:")
    print(f"  the model {iou:.3f}, {judged['held_out/dual/dice']:.3f}; with another object's caption {iou - gap:.3f}")
    tried = constants(load_config([str(folder / "config.yaml")]))
    for name, values in tried.items():
        print(f"  {name} {values['iou']:.3f}, {values['dice']:.3f}")
    print(f"text -> mask on pictures that were held out: IoU {judged['held_out/segment/iou']:.3f}")
    # The mean mask's level is chosen on the held-out pairs themselves: no constant reaches more.
    best = max(tried, key=lambda name: tried[name]["iou"])
    if not iou > (least := tried[best]["iou"]):
        sys.exit(f"error: {folder}: no better than {best}: IoU {iou:.3f}; wanted above {least:.3f}")
    if not gap > 0:
        sys.exit(f"error: {folder}: captions carry nothing: the swap gap is {gap:.3f}; wanted above 0")
    page = (folder / "report.html").read_text("utf-8")
    if re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page):
        sys.exit(f"error: {folder / 'report.html'}: it refers to another file or to the network")
    print(f"report: {(folder / 'report.html').resolve()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
