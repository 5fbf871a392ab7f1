"""The journal: one line and one record per step."""

import json
import re
from pathlib import Path

import pytest

from trainer.measure.journal import Journal
from trainer.measure.rates import Spent


class Tracked(list):
    """What trackers were given."""

    def log(self, values, step):
        self.append((values, step))

    def picture(self, *given):
        self.append(given)


def test_the_journal_writes_one_line_and_one_record_per_step(tmp_path: Path):
    lines: list[str] = []
    tracked = Tracked()
    journal = Journal(tmp_path, 200, tracked, lines.append, peak=2e12)
    spent = Spent(2.0, 8, 300.0, 100.0, 4e12, (0.5, 0.1), (1e9, 3e9), (0.5, 0.7))
    for step in range(1, 6):
        journal.step(step, {"loss": 2.0, "bce": 0.5}, 1e-3, spent)
    journal.held_out(5, {"mask_loss": 1.25, "iou": 0.5})
    journal.close()
    assert lines[0] == (
        "step 00001/00200 (0.5%) | loss 2.0000 bce 0.5000 | lr 1.00e-03 | 4.00 samples/s 150 tokens/s mfu 50.0% "
        "padding 25.0% | captions 30.0% | data wait 15.0% (max 25.0%) | 3.00 GB | --:-- left"
    )
    assert re.search(r"\| \d\d:\d\d left$", lines[4])  # the first steps are left out of the timing
    assert lines[5] == "step 00005/00200 held out | mask_loss 1.2500 iou 0.5000"
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == journal.records and len(written) == 6
    assert written[0]["data_wait"] == pytest.approx(0.15) and written[-1] == {
        "step": 5,
        "held_out/mask_loss": 1.25,
        "held_out/iou": 0.5,
    }
    assert tracked[0][0]["train/loss"] == 2.0 and tracked[0][1] == 1
