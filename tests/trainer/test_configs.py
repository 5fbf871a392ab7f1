"""The configurations that are shipped: every key exists, and a run with them reads all that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shards.errors import UserError
from tests.trainer.runs import REPOSITORY, finish, records
from trainer.config import load_config
from trainer.data.loader import Loader
from trainer.loader_options import training_options

MIX = str(REPOSITORY / "trainer/configs/sa2va.yaml")
REPEATS = {
    **{"refcoco": 5, "refcoco+": 5, "refcocog": 4, "revos": 10, "mevis": 4, "ref-youtube-vos": 4, "ref-sav": 4},
    **{"gcg-grandf": 50, "gcg-openpsg": 5, "gcg-refcocog": 5, "gcg-flickr30k": 25},
    **{"osprey-conversation": 1, "osprey-description": 1, "llava": 1, "videoqa": 1},
}
"""Of the published mix, by source; a picture of Flickr30k has 5 captions."""
TINY = [
    *("model.dtype=float32", "mixed_precision=no", "num_points=256", "lora={r: 4, alpha: 8}", "data.threads=1"),
    *("gradient_checkpointing=false", "max_caption_tokens=3", "eval={every: 9, samples: 2, show: 2}"),
]


def test_the_published_mix_is_the_official_one():
    config = load_config([MIX])
    assert config.data.sources == REPEATS
    assert (config.lambda_lang, config.lambda_mask, config.lambda_dice, config.loss_means) == (1, 2, 0.5, "sa2va")
    assert (config.lr, config.weight_decay, config.weight_decay_on, config.clip) == (4e-5, 0.05, "all", 1)
    assert (config.warmup_steps, config.warmup_from) == (0.05 * config.steps, 1e-5)
    assert config.batch_size * config.accumulation * 16 == 256
    options = config.conversation_options()
    assert (options.phrases, options.with_replacement, options.frames) == (5, True, 5)
    assert (options.no_target, options.negatives, options.max_row_tokens) == ("empty_mask", 0, 8192)
    assert {*config.trainable} == {"lora", "token_embeddings", "mlp1", "text_hidden_fcs", "sam_mask_decoder"}


def test_a_set_of_the_mix_that_is_missing_is_named_and_can_be_left_out(mix_sets: Path):
    there = [str(path) for path in sorted(mix_sets.iterdir()) if path.name not in ("revos", "ref-sav")]
    config = load_config([MIX, f"data.shards={there}", "batch_size=1", "accumulation=1"])
    with pytest.raises(
        UserError, match=r"data.sources: no shards of this source; met ref-sav, revos;.*sources.ref-sav=0"
    ):
        Loader(config.data.shards, training_options(config, "converse", None))
    config.data.sources |= {"revos": 0, "ref-sav": 0, "llava": 0}
    described = Loader(config.data.shards, training_options(config, "converse", None)).described
    assert {line.partition(":")[0] for line in described} == REPEATS.keys() - {"revos", "ref-sav", "llava"}


@pytest.mark.slow
def test_a_training_on_the_published_mix_runs(mix_sets: Path, tmp_path: Path):
    """Two steps of 4 samples on small sets of all 15 datasets."""
    out = tmp_path / "run"
    arguments = [MIX, f"data.shards=[{mix_sets}]", f"output_dir={out}", *TINY]
    arguments += ["steps=2", "warmup_steps=1", "accumulation=2", "data.holdout=0.2"]
    finish(arguments, tmp_path / "said", processes=1)
    steps = [record for record in records(out) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2] and all(record["lang"] > 0 for record in steps)
    assert any(record.get("bce", 0) > 0 and record["dice"] > 0 for record in steps)
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["sources"] == REPEATS
