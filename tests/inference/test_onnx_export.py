"""The exported graphs, run by onnxruntime, against the model on photographs."""

import copy
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from skimage import data

import inference.onnx_export
from inference.onnx_export import FEATURES, OnnxReport, export_onnx
from pipeline import resize
from shards import extras
from shards.errors import UserError
from shards.recipe import named_recipe
from trainer.model.sa2va import Sa2VA, build
from trainer.released.loaded import LoadedModel


@pytest.fixture(scope="module")
def model() -> Sa2VA:
    torch.manual_seed(0)
    model = build("tiny").eval().requires_grad_(False)
    # `build` makes the predicted IoU equal for all three masks; here the decoder has to choose.
    head = model.grounding_encoder.sam2_model.sam_mask_decoder.iou_prediction_head.layers[-1]
    torch.nn.init.normal_(head.weight)
    return model


@pytest.fixture(scope="module")
def report(model: Sa2VA, tmp_path_factory: pytest.TempPathFactory) -> OnnxReport:
    return export_onnx(LoadedModel(model), tmp_path_factory.mktemp("onnx") / "new", [data.astronaut(), data.coffee()])


def pictures(*originals: np.ndarray) -> torch.Tensor:
    recipe = named_recipe("sa2va")
    return torch.from_numpy(np.stack([resize.picture(original, 1024, recipe) for original in originals]))


def session(report: OnnxReport, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(report.folder / name), providers=["CPUExecutionProvider"])


def masks(report: OnnxReport, image: torch.Tensor, language: torch.Tensor) -> np.ndarray:
    """Return the masks of the graphs, computed without PyTorch."""
    features = session(report, "image_encoder.onnx").run(None, {"g_pixel_values": image.numpy()})
    inputs = dict(zip(FEATURES, features, strict=True)) | {"language_embeddings": language.numpy()}
    (logits,) = session(report, "mask_decoder.onnx").run(None, inputs)
    return logits


@pytest.mark.parametrize("count", [1, 3, 7])
def test_masks_are_those_of_the_model_on_a_photograph(model: Sa2VA, report: OnnxReport, count: int):
    image = pictures(data.chelsea())  # not one of the export
    language = torch.randn(count, model.grounding_encoder.width)
    decoder = model.grounding_encoder.sam2_model.sam_mask_decoder
    chosen = []
    hook = decoder.register_forward_hook(lambda m, inputs, out: chosen.append(out[1].argmax(1)))
    expected = model.grounding_encoder.decode(
        model.encode_sam(image), torch.zeros(count, dtype=torch.int64), language
    ).numpy()
    hook.remove()
    actual = masks(report, image, language)
    assert actual.dtype == np.float32 and actual.shape == (count, 256, 256)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()
    assert 0 < (expected > 0).mean() < 1
    if count == 7:
        assert len(chosen[0].unique()) > 1  # always the same of the three masks would not pass


def test_pictures_come_in_batches_of_any_size(model: Sa2VA, report: OnnxReport):
    images = pictures(data.chelsea(), data.astronaut(), data.coffee())
    sam_features = model.encode_sam(images)
    found = session(report, "image_encoder.onnx").run(None, {"g_pixel_values": images.numpy()})
    for actual, expected in zip(found, (sam_features.embedding, *sam_features.high), strict=True):
        assert actual.shape == tuple(expected.shape)
        assert np.abs(actual - expected.numpy()).max() < 1e-4 * expected.abs().max()


def test_inputs_and_outputs_have_the_documented_names_and_shapes(report: OnnxReport):
    encoder = session(report, "image_encoder.onnx")
    decoder = session(report, "mask_decoder.onnx")
    (picture,) = encoder.get_inputs()
    assert (picture.name, picture.type, picture.shape[1:]) == ("g_pixel_values", "tensor(uint8)", [3, 1024, 1024])
    assert isinstance(picture.shape[0], str)
    assert tuple(o.name for o in encoder.get_outputs()) == FEATURES
    shapes = {i.name: i.shape for i in decoder.get_inputs()}
    assert shapes.pop("language_embeddings")[1:] == [32]
    assert shapes == {"embedding": [1, 32, 64, 64], "high_256": [1, 4, 256, 256], "high_128": [1, 8, 128, 128]}
    assert [o.name for o in decoder.get_outputs()] == ["mask_logits"]


def test_the_report_holds_what_was_measured(report: OnnxReport):
    assert report.pictures == 2 and report.flipped < 1e-5
    assert report.sizes == {p.name: p.stat().st_size for p in report.folder.iterdir()}
    assert set(report.sizes) == {"image_encoder.onnx", "mask_decoder.onnx"}
    assert [d.output for d in report.differences] == [*FEATURES, "mask_logits"]
    for difference in report.differences:
        # Two programs that sum in different orders never agree to the last bit.
        assert 0 < difference.largest < 1e-4 * difference.magnitude and difference.magnitude > 0.1
        assert f"{difference.largest:.2e}" in report.table()


def test_no_path_of_this_machine_is_in_the_files(report: OnnxReport):
    for path in report.folder.iterdir():
        held = path.read_bytes()
        assert b"stack_trace" not in held and str(Path(torch.__file__).parents[1]).encode() not in held


@pytest.mark.slow
def test_graphs_of_another_model_are_refused(model: Sa2VA, report: OnnxReport, tmp_path: Path, monkeypatch):
    def write(module, args, path, *rest):
        shutil.copyfile(report.folder / path.name, path)

    monkeypatch.setattr(inference.onnx_export, "_write", write)
    export_onnx(LoadedModel(model), tmp_path / "same", [data.coffee()])
    other = copy.deepcopy(model)
    other.grounding_encoder.sam2_model.sam_mask_decoder.output_upscaling[3].bias += 0.01
    with pytest.raises(UserError, match=r"other, mask_logits: onnxruntime and PyTorch differ; met .*; wanted at most"):
        export_onnx(LoadedModel(other), tmp_path / "other", [data.coffee()])
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    with pytest.raises(UserError, match="there is something already"):
        export_onnx(LoadedModel(model), tmp_path / "same", [data.coffee()])


def test_mistakes_end_in_one_line(model: Sa2VA, tmp_path: Path, monkeypatch):
    with pytest.raises(UserError, match="no pictures to compare on; wanted at least one"):
        export_onnx(LoadedModel(model), tmp_path / "new", [])
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(
        UserError, match=r'a package is missing; met no onnxruntime; pip install "sa2va-shards\[deploy\]"'
    ):
        export_onnx(LoadedModel(model), tmp_path / "new", [data.coffee()])
    assert not any(tmp_path.iterdir())
