"""The demo fails where its mix learnt nothing."""

import sys
from pathlib import Path

import pytest

from tests.trainer.runs import REPOSITORY
from trainer.config import Config

LEARNT = {
    "held_out/converse/lang": 0.2,
    **{f"held_out/converse/{kind}/iou": 0.3 for kind in ("referring", "grounded_caption")},
    "held_out/converse/referring/video_iou": 0.3,
}


@pytest.fixture
def check_run(monkeypatch: pytest.MonkeyPatch):
    """The module as the demo runs it: as a script, beside `constants`."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "demo"))
    import check_run

    monkeypatch.setattr(check_run, "load_config", lambda arguments: Config())
    constant = {"referring": 0.2, "grounded_caption": 0.1}
    monkeypatch.setattr(check_run, "conversation_constants", lambda config: constant)
    yield check_run
    for name in ("check_run", "constants"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lang", 0.2, None),
        ("lang", 3.0, "conversations are not learnt: cross-entropy 5.00, then 3.00"),
        ("referring/iou", 0.2, "referring: no better than all foreground"),
        ("grounded_caption/iou", 0.08, "grounded_caption: IoU not above 2 times that before training"),
        ("referring/video_iou", 0.0, "referring: no video_iou"),
    ],
)
def test_a_mix_that_learnt_nothing_ends_in_one_line(check_run, name, value, message):
    first = {"held_out/converse/lang": 5.0, "held_out/converse/grounded_caption/iou": 0.04}
    records = [first, {**LEARNT, f"held_out/converse/{name}": value}]
    if message is None:
        check_run.check_conversations(Path("runs/demo"), records)
        return
    with pytest.raises(SystemExit, match=f"error: runs/demo: {message}"):
        check_run.check_conversations(Path("runs/demo"), records)
