"""Fail unless a run learnt the dual loop and the conversations about pictures, videos and captions with masks.

The masks of the dual loop beat every constant and its captions carry information; the answers of the conversations are
learnt, the masks of expressions beat all foreground, and those of captions have grown.

python demo/check_run.py runs/demo
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from constants import constants, conversation_constants

from trainer.config import load_config

LEAST_LEARNT = 0.5
"""Share of the first cross-entropy of the answers below which the last one must be."""
LEAST_GROWTH = 2.0
"""Times the IoU before training above which that of captions' phrases must be."""
KINDS = {"referring": "video_iou", "grounded_caption": "iou"}
"""Kinds of conversations that must be among the held-out ones, and the value that is printed of each."""


def main(folder: Path) -> None:
    records = read_records(folder)
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
    # The mean mask's level is chosen on the held-out pairs themselves: no constant reaches more.
    best = max(tried, key=lambda name: tried[name]["iou"])
    if not iou > (least := tried[best]["iou"]):
        sys.exit(f"error: {folder}: no better than {best}: IoU {iou:.3f}; wanted above {least:.3f}")
    if not gap > 0:
        sys.exit(f"error: {folder}: captions carry nothing: the swap gap is {gap:.3f}; wanted above 0")
    check_conversations(folder, records)
    page = (folder / "report.html").read_text("utf-8")
    if re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page):
        sys.exit(f"error: {folder / 'report.html'}: it refers to another file or to the network")
    print(f"report: {(folder / 'report.html').resolve()}")


def read_records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").split("\n") if line]


def check_conversations(folder: Path, records: list[dict[str, float]]) -> None:
    """Print what the conversations have learnt; end the program where that is nothing."""
    first, *_, last = [record for record in records if "held_out/converse/lang" in record]
    before = first["held_out/converse/lang"]
    after = last["held_out/converse/lang"]
    print(f"conversations that were held out: cross-entropy of answers {before:.2f} before training, {after:.2f} after")
    whole = conversation_constants(load_config([str(folder / "config.yaml")]))
    iou = {kind: [record.get(f"held_out/converse/{kind}/iou", 0.0) for record in (first, last)] for kind in KINDS}
    for kind, name in KINDS.items():
        value = last.get(f"held_out/converse/{kind}/{name}", 0.0)
        grown = f"IoU {iou[kind][0]:.3f}, then {iou[kind][1]:.3f}"
        print(f"  {kind}: {grown}; all foreground {whole[kind]:.3f}; {name} {value:.3f}")
        if not value > 0:
            sys.exit(f"error: {folder}: {kind}: no {name}: none was held out, or nothing was found")
    # The words are known from the first training, whose masks must not be lost; that a phrase has a mask is new.
    if not iou["referring"][1] > whole["referring"]:
        sys.exit(f"error: {folder}: referring: no better than all foreground")
    if not iou["grounded_caption"][1] > LEAST_GROWTH * iou["grounded_caption"][0]:
        sys.exit(f"error: {folder}: grounded_caption: IoU not above {LEAST_GROWTH:g} times that before training")
    if not after < LEAST_LEARNT * before:
        wanted = f"wanted less than {LEAST_LEARNT:g} of it"
        sys.exit(
            f"error: {folder}: conversations are not learnt: cross-entropy {before:.2f}, then {after:.2f}; {wanted}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
