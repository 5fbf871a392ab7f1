"""The folder of Sa2VA's training data: one set of each dataset that is found, and a summary of all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pipeline.sa2va_training import FAILED, MISSING, PARTS, failure, for_each_part
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import ShardSet
from tests.conftest import files_of
from tests.layouts import write_sa2va_training

FEW = ("--workers", 1, "--frames", 2, "--codec", "jpeg", "--recipe", "sa2va", "--max-bad", 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sa2va") / "data"
    write_sa2va_training(root)
    return root


FILES = {
    "gcg-grandf": "GranDf_HA_GCG_train.json",
    "gcg-refcocog": "RefCOCOg_GCG_train.json",
    "gcg-flickr30k": "flickr_mergedGT_GCG_train.json",
    "osprey-conversation": "osprey_conversation.json",
    "osprey-description": "osprey_detail_description.json",
}
"""The only file that a set was made of."""


def states(printed: str) -> dict[str, str]:
    """Return dataset -> state, as the table at the end says."""
    rows = re.findall(r"^│ ([^ ]+) +│ ([^│]+?) +│", printed.rpartition("┃ dataset")[2], re.MULTILINE)
    return dict(rows)


def test_each_dataset_becomes_a_set_and_a_failed_one_stops_no_other(here, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    expressions = root / "video_datas/mevis/train/meta_expressions.json"
    sound = expressions.read_bytes()
    expressions.write_bytes(sound[:-9])
    (root / "glamm_data/annotations/OpenPsgGCG_train.json").unlink()
    out = tmp_path / "shards"
    arguments = ("shard", "--source", "sa2va-training", "--root", root, "--out", out, *FEW)

    planned = here(*arguments, "--dry-run")
    assert planned.returncode == 1 and not out.exists()
    others = {part.source for part in PARTS} - {"mevis", "gcg-openpsg"}
    outcome = {"mevis": "failed", "gcg-openpsg": "missing"}
    assert states(planned.stdout) == {**dict.fromkeys(others, "would be written"), **outcome}

    done = here(*arguments)
    assert done.returncode == 1
    assert states(done.stdout) == {**dict.fromkeys(others, "written"), **outcome}
    assert "mevis failed: " in done.stderr and str(expressions) in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: 1 of {len(PARTS) - 1} datasets failed; met mevis;")
    assert f"gcg-openpsg missing: no {root}/glamm_data/annotations/OpenPsgGCG_train.json\n" in done.stdout
    assert {path.name for path in out.iterdir()} >= others
    for name in others:
        manifest = Manifest.read(out / name)
        assert (manifest.source, manifest.recipe.name, manifest.options["codec"]) == (name, "sa2va", "jpeg")
        assert manifest.options.get("frames", 2) == 2 and manifest.options.get("split") in ("train", None)
    for name, file in FILES.items():
        shards = ShardSet(out / name)
        metas = [shards.sample(n)[0] for n in range(len(shards))]
        assert {item["file"] for meta in metas for item in meta.get("captions", meta.get("records"))} == {file}
        assert {meta["dataset_type"] for meta in metas} == {name}
    verified = here("verify-shard", out / "gcg-grandf", "--against", root / "glamm_data", "--allow-lossy")
    assert verified.returncode == 0, verified.stdout
    before = {name: files_of(out / name) for name in others}

    expressions.write_bytes(sound)
    again = here(*arguments)
    assert again.returncode == 0, again.stderr
    assert states(again.stdout) == {
        **dict.fromkeys(others, "already there"),
        "mevis": "written",
        "gcg-openpsg": "missing",
    }
    assert {name: files_of(out / name) for name in others} == before


def test_videos_have_16_frames_unless_asked_for_others(data):
    requests = {}

    def make(request):
        requests[request.source.name] = request
        raise UserError("none made")

    outcomes = for_each_part(data, make, mask_slack=1)
    assert {outcome.state for outcome in outcomes} == {FAILED} and str(failure(outcomes)).startswith("15 of 15")
    frames = {name: request.choices.get("frames") for name, request in requests.items()}
    assert frames == {part.source: 16 if part.folder.startswith("video_datas") else None for part in PARTS}
    assert requests["refcoco"].choices["mask_slack"] == 1 and "mask_slack" not in requests["gcg-grandf"].choices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "val"), "not an option of this source; met --split"),
        ((), "none of Sa2VA's training data here; wanted ref_seg, video_datas, "),
    ],
)
def test_one_line_for_what_cannot_be_meant(here, tmp_path, arguments, message):
    done = here("shard", "--source", "sa2va-training", "--root", tmp_path, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_estimate_sums_over_the_folder(here, data, tmp_path):
    root = tmp_path / "data/glamm_data"
    shutil.copytree(data / "glamm_data", root)
    done = here("estimate", "--source", "sa2va-training", "--root", root.parent, "--samples", 1)
    assert done.returncode == 0, done.stderr
    found = states(done.stdout)
    assert {name for name in found if found[name] == "estimated"} == {name for name in found if name.startswith("gcg-")}
    assert {*found.values()} == {"estimated", MISSING}
