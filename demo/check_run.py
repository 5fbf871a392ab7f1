"""Fail unless a run's held-out mask loss fell clearly and its report stands by itself. Say how its masks compare.

python demo/check_run.py runs/demo
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from constants import constants

from trainer.config import load_config

_CLEARLY = 0.9  # the last evaluation's loss, as a share of the first one's, at most


def main(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [record["held_out/mask_loss"] for record in records if "held_out/mask_loss" in record]
    first, last = losses[0], losses[-1]
    print(f"held-out mask loss (BCE + Dice): {first:.3f} before training, {last:.3f} after")
    if not last < _CLEARLY * first:
        sys.exit(f"error: {folder}: it did not fall clearly; wanted at most {_CLEARLY} of the first")
    judged = [record for record in records if "held_out/iou" in record][-1]
    print("the same objects, IoU and Dice:")
    print(
        f"  the model {judged['held_out/iou']:.3f}, {judged['held_out/dice']:.3f}; the caption carries (swap gap) "
        f"{judged.get('held_out/swap_gap', float('nan')):+.3f}"
    )
    for name, values in constants(load_config([str(folder / "config.yaml")])).items():
        print(f"  {name} {values['iou']:.3f}, {values['dice']:.3f}")
    page = (folder / "report.html").read_text("utf-8")
    if re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page):
        sys.exit(f"error: {folder / 'report.html'}: it refers to another file or to the network")
    print(f"report: {(folder / 'report.html').resolve()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
