"""Export to int8 and ONNX from the command line, and prediction with the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data as photographs
from typer.testing import CliRunner

from cli import app
from inference.deploy import export_graphs, export_quantised
from shards.errors import UserError
from trainer.model.sa2va import build
from trainer.released.folder import save_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `photos` and `questions.tsv`. Not to be changed."""
    folder = tmp_path_factory.mktemp("deploy")
    torch.manual_seed(0)
    save_model(build("tiny"), folder / "model")
    (folder / "photos").mkdir()
    Image.fromarray(photographs.chelsea()).save(folder / "photos" / "cat.png")
    (folder / "questions.tsv").write_text("cat.png\tPlease segment the cat.\ncat.png\tthe left eye\n")
    return folder


def test_int8_reports_sizes_and_masks_and_predicts(files, tmp_path):
    out = tmp_path / "int8"
    report = export_quantised(files / "model", out, files / "photos", files / "questions.tsv", None)
    assert "language model" in report and "00001-cat" in report and "mean" in report
    before = files / "model"
    after = out
    sizes = [sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (before, after)]
    assert sizes[1] < sizes[0] - 900_000  # the language model has 1.4 MB of linear layers
    command = ["predict", "--model", str(out), "--image", str(files / "photos" / "cat.png")]
    command += ["--text", "Please segment the cat.", "--max-new-tokens", "3", "--out", str(tmp_path / "found")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "found" / "cat.json").read_text())["question"] == "Please segment the cat."


@pytest.mark.slow
def test_onnx_of_a_folder_of_photographs(files, tmp_path):
    report = export_graphs(files / "model", tmp_path / "onnx", files / "photos")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"image_encoder.onnx", "mask_decoder.onnx"}
    assert "mask_logits" in report


def test_missing_inputs_are_one_line(files, tmp_path):
    with pytest.raises(UserError, match=r"no pictures to compare on.*--images"):
        export_graphs(files / "model", tmp_path / "out", None)
    with pytest.raises(UserError, match="both --images and --texts"):
        export_quantised(files / "model", tmp_path / "out", files / "photos", None, None)
    assert not (tmp_path / "out").exists()
