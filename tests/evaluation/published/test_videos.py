"""Benchmarks of videos: items and truths as the raw files state them, measures, and a model's answers."""

from __future__ import annotations

import copy
import io
import json
import signal
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.published.compare import compare
from evaluation.published.datasets import opened
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.predictions import Prediction, encode, read_predictions
from evaluation.published.run import Asking, benchmark, open_benchmarks
from inference.predictor import Predictor
from shards.errors import UserError
from tests.conftest import files_of
from tests.joined import Joined, dies_after_a_line
from tests.pipeline.sources import videos as v
from trainer.released.folder import load_original_decoder, save_model
from trainer.released.loaded import LoadedModel

FRAMES = ["00000", "00005", "00007"]
LEFT = np.stack([v.disc(40 + 5 * n, 40, 18) for n in range(3)])
RIGHT = np.stack([v.disc(120, 80 - 9 * n, 15) for n in range(3)])
RIGHT[1] = False  # not in the second frame
NOTHING = np.zeros_like(LEFT)


def write(file: Path, body: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(body))


def write_mevis(root: Path, videos: list[str], expressions: dict, file: str, pictures: str, masks: str) -> None:
    """Write videos with two objects, 7 and 8, and the same expressions."""
    entry = {"expressions": expressions, "frames": FRAMES, "height": v.HEIGHT, "width": v.WIDTH}
    write(root / file, {"videos": {name: entry for name in videos}})
    for name in videos:
        for n, frame in enumerate(FRAMES):
            v.write_frame(root / pictures / name / f"{frame}.jpg", n)
    lists = {number: [v.run_lengths(m) if m.any() else None for m in of] for number, of in (("7", LEFT), ("8", RIGHT))}
    write(root / masks, lists)


MEVIS = {
    "0": {"exp": "both discs", "anno_id": [7, 8], "obj_id": [0, 1]},
    "1": {"exp": "which one moves?", "anno_id": [7], "obj_id": [0]},
    "2": {"exp": "a third", "anno_id": [9], "obj_id": [2]},
}


@pytest.fixture
def mevis(tmp_path) -> Path:
    root = tmp_path / "raw"
    files = ("valid_u/meta_expressions.json", "valid_u/JPEGImages", "valid_u/mask_dict.json")
    write_mevis(root, ["video"], MEVIS, *files)
    return root


def measure(name: str, root: Path, folder: Path, answers: dict[str, np.ndarray | None], **more) -> tuple[dict, str]:
    """Measure answers (F, H, W), None for no mask; return results.json and what is said."""
    folder.mkdir(exist_ok=True)
    file = folder / "predictions.jsonl"
    lines = [
        Prediction(item, "", "", () if a is None else tuple(map(encode, a))).to_line() for item, a in answers.items()
    ]
    file.write_bytes(b"".join(lines))
    (said,) = benchmark([name], root, folder, predictions=file, **more)
    return json.loads((folder / "results.json").read_text()), said


def j_of(answer: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames of IoU, 1 for two empty ones."""
    pairs = [(int((a & t).sum()), int((a | t).sum())) for a, t in zip(answer, truth, strict=True)]
    return float(np.mean([both / either if either else 1 for both, either in pairs]))


def test_expressions_of_a_video_are_measured_frame_by_frame(mevis, tmp_path):
    with opened(BENCHMARKS["mevis"], mevis, "valid_u") as found:
        asked = {item.id: item.question for one in found.asked for item in one.items}
    assert asked == {
        "video/0": "<image>\nPlease segment both discs.",
        "video/1": "<image>\n which one moves? Please respond with a segmentation mask.",
        "video/2": "<image>\nPlease segment a third.",
    }
    right = {"video/0": LEFT | RIGHT, "video/1": LEFT, "video/2": LEFT}
    results, said = measure("mevis", mevis, tmp_path / "right", right)
    assert results["measures"] == {"J": 1, "F": 1, "J&F": 1}
    assert results["counts"]["left_out"] == {"whose object has no usable mask": 1} and results["counts"]["videos"] == 1
    assert "3 items here and 793 as published" in said
    shifted = np.roll(LEFT, 30, axis=2)  # so far that no boundary is near, but they overlap
    results, _ = measure("mevis", mevis, tmp_path / "wrong", {"video/0": None, "video/1": shifted})
    assert results["measures"]["J"] == pytest.approx((j_of(NOTHING, LEFT | RIGHT) + j_of(shifted, LEFT)) / 2, abs=1e-12)
    assert results["measures"]["J&F"] == (results["measures"]["J"] + results["measures"]["F"]) / 2
    page = (tmp_path / "wrong" / "report.html").read_text()
    assert page.index("both discs") < page.index("which one moves") and "frame 00005" in page and "J&amp;F 0.00" in page
    assert page.count("<img") == 3 * 2 * 2 * 2  # sections, items, frames, panels
    files = [tmp_path / name / "predictions.jsonl" for name in ("wrong", "right")]
    assert "J&F" in compare(*files, tmp_path / "compared", draws=100)
    compared = json.loads((tmp_path / "compared/compare.json").read_text())
    assert compared["items"] == 2
    assert compared["measures"]["J"]["difference"] == pytest.approx(1 - results["measures"]["J"], abs=1e-12)


@pytest.mark.parametrize(
    "masks, fault",
    [
        (LEFT[:2], r"item video/1: masks do not fit the frames; met 2 masks; wanted 3, one for each frame"),
        (LEFT[:, 1:], r"item video/1: mask and picture differ in size"),
    ],
)
def test_masks_that_do_not_fit_name_their_item(mevis, tmp_path, masks, fault):
    with pytest.raises(UserError, match=fault):
        measure("mevis", mevis, tmp_path / "out", {"video/1": masks})


def test_a_frame_without_a_picture_leaves_its_video_out(mevis, tmp_path):
    (mevis / "valid_u/JPEGImages/video/00005.jpg").unlink()
    with pytest.raises(UserError, match="left out: 1 of videos that cannot be read: a frame without a picture"):
        measure("mevis", mevis, tmp_path / "out", {"video/1": LEFT})


def test_ref_sav_is_read_from_the_files_of_its_measuring(tmp_path):
    typed = {name: {**one, "type_id": n % 2} for n, (name, one) in enumerate(MEVIS.items())}
    write_mevis(tmp_path / "ref_sav_eval", ["a"], typed, "meta_expressions_valid.json", "videos", "mask_dict.json")
    results, _ = measure("ref-sav", tmp_path, tmp_path / "out", {"a/0": LEFT | RIGHT, "a/1": None})
    measures = results["measures"]
    assert (measures["long J&F"], measures["short J"], measures["overall F"]) == (1, 0, 0.5)
    assert measures["short A"] == pytest.approx(1 - LEFT.mean()) and measures.keys().isdisjoint({"J", "short R"})


def test_davis_is_the_mean_of_four_annotators(tmp_path):
    for n, frame in enumerate(FRAMES):
        v.write_frame(tmp_path / f"valid/JPEGImages/v/{frame}.jpg", n)
        v.write_ids(tmp_path / f"valid/Annotations/v/{frame}.png", {1: LEFT[n], 2: RIGHT[n]})
    # The second object has an expression of the first annotator only.
    expressions = {str(n): {"exp": f"text {n}", "obj_id": "1" if 0 < n < 5 else "2"} for n in (1, 2, 3, 4, 10)}
    entry = {"v": {"expressions": expressions, "frames": FRAMES}}
    write(tmp_path / "meta_expressions/valid/meta_expressions.json", {"videos": entry})
    answers = {f"v/{n}": LEFT for n in (1, 2, 3)} | {"v/4": None, "v/10": None}
    results, _ = measure("ref-davis", tmp_path, tmp_path / "out", answers)
    first = (1 + j_of(NOTHING, RIGHT)) / 2
    assert results["measures"]["J"] == pytest.approx((first + 1 + 1 + 0) / 4, abs=1e-12)
    truth, _ = measure(
        "ref-davis", tmp_path, tmp_path / "right", {f"v/{n}": LEFT for n in (1, 2, 3, 4)} | {"v/10": RIGHT}
    )
    assert truth["measures"]["J&F"] == 1
    assert taken_by_all(tmp_path) == ["ref-davis"]


REVOS = {
    "0": {"exp": "the left disc", "anno_id": [7], "type_id": 0},
    "1": {"exp": "what moves up?", "anno_id": [8], "type_id": 1},
    "2": {"exp": "a dragon", "anno_id": [], "type_id": 2},
}


def test_revos_is_measured_by_type_with_a_and_r(tmp_path):
    root = tmp_path / "raw"
    write_mevis(root, ["lvvis/x"], REVOS, "meta_expressions_valid_.json", "JPEGImages", "mask_dict.json")
    answers = {"lvvis/x/0": RIGHT, "lvvis/x/1": RIGHT, "lvvis/x/2": LEFT}
    results, said = measure("revos", root, tmp_path / "out", answers)
    measures = results["measures"]
    assert measures["reasoning J&F"] == 1 and measures["referring J"] == pytest.approx(0) and measures["all R"] is None
    assert "│ reasoning J&F" in said and "100.00" in said
    assert measures["overall J"] == pytest.approx(0.5) and "there is no mask_dict_foreground.json" in said
    accuracy = [1 - (LEFT ^ RIGHT).mean(), 1, 1 - LEFT.mean()]
    assert measures["referring A"] == pytest.approx(accuracy[0]) and measures["all A"] == pytest.approx(
        np.mean(accuracy)
    )
    both = [[v.run_lengths(LEFT[n]), v.run_lengths(RIGHT[n])] for n in range(3)]  # several objects a frame
    write(root / "mask_dict_foreground.json", {"lvvis/x": {"masks_rle": both}})
    results, said = measure("revos", root, tmp_path / "out", answers)
    area = (LEFT | RIGHT).sum(axis=(1, 2))
    assert results["measures"]["referring R"] == pytest.approx(np.mean(1 - RIGHT.sum(axis=(1, 2)) / area), abs=1e-6)
    nothing = np.mean(1 - LEFT.sum(axis=(1, 2)) / area)
    expected = np.mean([results["measures"]["referring R"], 1, nothing])
    assert results["measures"]["all R"] == pytest.approx(expected, abs=1e-6) and "mask_dict_foreground" not in said


@pytest.mark.parametrize("split, file", [("valid", "meta_expressions.json"), ("test", "meta_expressions_release.json")])
def test_a_split_without_public_truth_is_handed_in(tmp_path, split, file):
    root = tmp_path / "raw"
    expressions = {name: {"exp": one["exp"]} for name, one in MEVIS.items()}
    write_mevis(root, ["w", "x"], expressions, f"{split}/{file}", f"{split}/JPEGImages", "unused.json")
    answers = {"w/0": LEFT, "w/1": None, "x/2": RIGHT}
    results, said = measure("mevis", root, tmp_path / "out", answers, split=split)
    assert results["measures"] == {} and results["counts"]["measured"] == 3
    assert "left out: 3 without an answer" in said and "submission.zip" in said
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        found = {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}
    assert found.keys() == {f"{item}/{frame}.png" for item in answers for frame in FRAMES}
    for item, masks in answers.items():
        for n, frame in enumerate(FRAMES):
            expected = np.zeros((v.HEIGHT, v.WIDTH)) if masks is None else 255 * masks[n].astype(int)
            assert found[f"{item}/{frame}.png"].dtype == np.uint8
            np.testing.assert_array_equal(found[f"{item}/{frame}.png"], expected)
    where = tmp_path / "out/predictions.jsonl"
    with pytest.raises(UserError, match="the truth of this split is not public"):
        compare(where, where, tmp_path / "compared", name="mevis", split=split, root=root)


def test_ref_youtube_vos_is_handed_in_without_the_videos_of_its_test_split(tmp_path):
    root = tmp_path / "raw"
    for n, frame in enumerate(FRAMES):
        v.write_frame(root / f"valid/JPEGImages/v/{frame}.jpg", n)
    entry = {"expressions": {"0": {"exp": "a disc"}}, "frames": FRAMES}
    write(root / "meta_expressions/valid/meta_expressions.json", {"videos": {"v": entry, "tested": entry}})
    write(root / "meta_expressions/test/meta_expressions.json", {"videos": {"tested": entry}})
    results, _ = measure("ref-youtube-vos", root, tmp_path / "out", {"v/0": LEFT})
    assert results["counts"]["items"] == 1
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert archive.namelist() == [f"Annotations/v/0/{frame}.png" for frame in FRAMES]
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / ".submission.zip.tmp").write_bytes(b"half, of a killed run" * 1000)
    measure("ref-youtube-vos", root, tmp_path / "out", {"v/0": LEFT})
    assert files_of(tmp_path / "out").keys() == before.keys()
    assert files_of(tmp_path / "out")["submission.zip"] == before["submission.zip"]
    (root / "valid/Annotations").mkdir()
    assert taken_by_all(root) == ["ref-youtube-vos"]


def taken_by_all(root: Path) -> list[str]:
    """Return the benchmarks that `--on all` finds below a root."""
    with ExitStack() as stack:
        return [one.benchmark.name for one in open_benchmarks(["all"], root, None, stack)]


@pytest.mark.slow
def test_a_model_is_asked_about_each_expression(mevis, model_folder, talker, tmp_path):
    asking = Asking(str(model_folder), max_new_tokens=3, device="cpu", video_frames="first", propagate="tuned")
    assert len([*benchmark(["mevis"], mevis, tmp_path, asking=asking)]) == 1
    file = tmp_path / "mevis-valid_u/predictions.jsonl"
    settings = json.loads((file.parent / "run.json").read_text())
    assert (settings["video_frames"], settings["propagate"]) == ("first", "tuned")
    found = read_predictions(file).of_item
    predictor = Predictor(LoadedModel(talker), max_new_tokens=3, video_frames="first", propagate="tuned")
    with opened(BENCHMARKS["mevis"], mevis, "valid_u") as data:
        frames = [data.read(data.asked[0]).frames[n] for n in range(3)]
    assert found.keys() == {"video/0", "video/1", "video/2"}
    track = predictor.track(frames, "<image>\nPlease segment both discs.")
    one = found["video/0"]
    assert (one.question, one.answer) == ("Please segment both discs.", track.text)
    masks = [of_frame[0] for of_frame in track.masks]
    assert track.objects and len(one.masks) == 3
    assert np.count_nonzero(one.decoded(v.HEIGHT, v.WIDTH) != np.stack(masks)) < 1e-4 * LEFT.size
    written = file.read_bytes()
    file.write_bytes(b"".join(written.splitlines(keepends=True)[:1]))  # as a killed run leaves it
    assert len([*benchmark(["mevis"], mevis, tmp_path, asking=asking)]) == 1
    assert read_predictions(file).of_item.keys() == found.keys() and read_predictions(file).repeated == 0


@pytest.fixture(scope="module")
def two_decoders(talker, tmp_path_factory) -> tuple[Path, Path]:
    """The tiny model, which sees 2 frames of a video, and a checkpoint of SAM 2 with another mask decoder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(talker, folder)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"video_frames_number": 2})
    state = talker.grounding_encoder.sam2_model.state_dict()
    visible = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    changed = {"sam_mask_decoder.output_upscaling.3.weight": lambda t: -t, visible: lambda t: torch.full_like(t, 1e4)}
    assert changed.keys() <= state.keys()
    torch.save({"model": {name: changed.get(name, torch.clone)(t) for name, t in state.items()}}, folder / "sam2.pt")
    return folder, folder / "sam2.pt"


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_answer_videos_as_one_does(talker, two_decoders, tmp_path):
    """The frames between the two that are seen are followed by SAM 2's own decoder, from the checkpoint."""
    root = tmp_path / "raw"
    videos = ["a", "b", "c"]
    files = ("valid_u/meta_expressions.json", "valid_u/JPEGImages", "valid_u/mask_dict.json")
    write_mevis(root, videos, {name: MEVIS[name] for name in "01"}, *files)
    model, sam2 = two_decoders
    options = [*("benchmark", "--on", "mevis", "--root", root, "--model", model, "--sam2", sam2, "--device", "cpu")]
    options += ["--video-frames", "uniform", "--propagate", "sam2", "--max-new-tokens", 2, "--out"]
    asking = Asking(str(model), sam2=sam2, device="cpu", video_frames="uniform", propagate="sam2", max_new_tokens=2)
    assert len([*benchmark(["mevis"], root, tmp_path / "one", asking=asking)]) == 1
    alone = tmp_path / "one/mevis-valid_u"
    settings = json.loads((alone / "run.json").read_text())
    assert (settings["video_frames"], settings["propagate"]) == ("uniform, 2 of them", "sam2")

    run = Joined(2, dies_after_a_line, [*options, tmp_path / "two"], log=tmp_path / "log")
    file = tmp_path / "two/mevis-valid_u/predictions.jsonl"
    assert run.wait() == [0, -signal.SIGKILL], (tmp_path / "log").read_text()  # the other answers all that is left
    found = read_predictions(file)
    expected = read_predictions(alone / "predictions.jsonl").of_item
    assert found.of_item == expected and found.repeated == 0
    assert expected.keys() == {f"{name}/{n}" for name in videos for n in "01"}
    results = [json.loads((folder / "results.json").read_text()) for folder in (alone, file.parent)]
    assert results[0]["measures"] == results[1]["measures"]

    loaded = LoadedModel(copy.deepcopy(talker))
    load_original_decoder(loaded.model, sam2)
    predictor = Predictor(loaded, max_new_tokens=2, propagate="sam2")
    predictor.frames_seen = 2
    with opened(BENCHMARKS["mevis"], root, "valid_u") as data:
        frames = [data.read(data.asked[2]).frames[n] for n in range(3)]
    track = predictor.track(frames, "<image>\n which one moves? Please respond with a segmentation mask.")
    masks = np.stack([of_frame[0] for of_frame in track.masks])
    answered = expected["c/1"].decoded(v.HEIGHT, v.WIDTH)
    assert np.count_nonzero(answered != masks) < 1e-4 * masks.size and masks[1].any()

    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))  # one video, and a part of another
    assert len([*benchmark(["mevis"], root, tmp_path / "two", asking=asking)]) == 1
    assert read_predictions(file).of_item == expected and read_predictions(file).repeated == 0
