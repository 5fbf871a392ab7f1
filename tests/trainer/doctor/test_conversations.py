"""Checks of conversations: frames of videos, and what rows take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.trainer.doctor.found import GOOD, found
from trainer.config import load_config
from trainer.doctor.footprint import Footprint


@pytest.fixture
def talks(mix_sets: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run on conversations about pictures, videos and captions."""
    shards = ", ".join(
        str(mix_sets / name) for name in ("refcoco", "ref-youtube-vos", "videoqa", "gcg-grandf", "llava")
    )
    return [*GOOD, "objective=converse", "data.holdout=0", f"data.shards=[{shards}]", f"output_dir={tmp_path / 'run'}"]


def test_videos_with_too_few_frames_are_counted_once_per_set(talks: list[str]):
    """The videos have 3 frames; those of videoqa have no objects, and are drawn from in another way."""
    assert not found(talks)
    (warned,) = [text for check, text in found([*talks, "data.frames=2"], "warn") if check == "frames"]
    assert "ref-youtube-vos: 2 videos with objects; 2 of them have at most 3 frames" in warned
    assert "for data.frames=2; shard them with more, such as --frames 16" in warned
    assert not [check for check, _ in found(talks, "warn") if check == "frames"]


def test_tokens_of_the_first_rows_are_said(talks: list[str]):
    """Rows with a picture have its 256 visual tokens and a question; a video of 3 frames three times as many."""
    (said,) = [text for check, text in found([*talks, "data.frames=3", "seed=1"], "ok") if check == "rows"]
    numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", said)]
    rows, mean, most, padded, pictures = numbers[:5]
    assert rows == 2 and 256 < mean <= most <= padded < 8192 and 1 <= pictures <= 3, said
    assert "of activations" in said


def test_activations_of_the_language_model():
    """Of 2 layers of width 8 with 100 tokens and 10 labels of 50 tokens, by hand."""
    footprint = Footprint(0, {}, {}, 0, 0, layers=2, width=8, vocabulary=50)
    half = load_config([])
    assert footprint.activations(100, 10, half) == 100 * 8 * 2 * 17 * 2 + 10 * 50 * 8
    whole = load_config(["mixed_precision=no", "gradient_checkpointing=true"])
    assert footprint.activations(100, 10, whole) == 100 * 8 * (2 + 17) * 4 + 10 * 50 * 8
