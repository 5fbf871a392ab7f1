"""Prediction from files to files, with a tiny model in the released layout."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import cli
from inference.loading import load
from inference.predictor import Answer, Predictor, Track
from inference.prompted import parse_prompt, region_at
from inference.run import predict, read_questions
from shards.errors import UserError
from shards.printable import printable
from tests.inference.videos import read_h264, write_h264
from tests.joined import Joined, command_line
from trainer.released.folder import save_model
from trainer.released.loaded import LoadedModel

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(talker, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(talker, folder)
    return folder


@pytest.fixture
def files(tmp_path, photos) -> Path:
    """Photographs a.png, b.png, c.png, and half of one, broken.png."""
    for name, photo in zip("abc", photos, strict=True):
        Image.fromarray(photo).save(tmp_path / f"{name}.png", compress_level=1)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def never() -> Predictor:
    raise AssertionError("the model is loaded before the files are known to be good")


@pytest.mark.slow
def test_the_command_line_writes_masks_overlay_and_answer(folder, files, photos, talker):
    options = ["--max-new-tokens", "3", "--tiles", "12", "--device", "cpu"]
    question = ["--image", str(files / "b.png"), "--text", "Where?", "--out", str(files / "out")]
    run = Joined(1, command_line, ["predict", "--model", folder, *question, *options], log=files / "said")
    assert run.wait() == [0]
    (expected,) = Predictor(LoadedModel(talker), max_new_tokens=3, most_tiles=12).segment([photos[1]], ["Where?"])
    assert printable(f"b.png: {expected.text}".strip()) in (files / "said").read_text()
    noted = json.loads((files / "out" / "b.json").read_text())
    assert noted["answer"] == expected.text and noted["question"] == "Where?"
    assert noted["masks"] == [f"b.mask{n}.png" for n in range(1, len(expected.masks) + 1)] != []
    for name, mask in zip(noted["masks"], expected.masks, strict=True):
        actual = read(files / "out" / name)
        assert set(np.unique(actual)) <= {0, 255} and ((actual > 0) != mask).mean() < 1e-4
    overlay = read(files / "out" / "b.overlay.png")
    outside = ~expected.masks.any(0)
    assert overlay.shape == photos[1].shape and (overlay[outside] != photos[1][outside]).mean() < 1e-3


def test_a_line_of_questions_ends_at_a_line_feed_alone(tmp_path):
    """Names and questions may hold the line ends of other systems and of Unicode."""
    name = "a\u2028b\x85.png"
    question = "segment\u2028the\x0bred\x0c\u2029one"
    (tmp_path / name).touch()
    texts = tmp_path / "q.tsv"
    texts.write_bytes(f"{name}\t{question}\r\n\n{name}\twhere?".encode())
    first, second = read_questions(tmp_path, texts)
    assert (first.path, first.text, second.text) == (tmp_path / name, question, "where?")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.png", "y" * 250 + "/z.png"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name):
    texts = tmp_path / "q.tsv"
    texts.write_text(f"{name}\twhere?\n")
    with pytest.raises(UserError, match="no such picture") as raised:
        read_questions(tmp_path, texts)
    assert len(str(raised.value)) < 900 and printable(str(raised.value)) == str(raised.value)


def test_bytes_of_the_command_line_that_are_no_text_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--text: not UTF-8; met 'where\?\\udcff'"):
        predict(lambda: None, tmp_path, image=tmp_path / "a.png", text="where?\udcff")


@pytest.mark.parametrize(
    "options, message",
    [
        ("--image none.png --text x", r"none\.png: no such file"),
        ("--image broken.png --text x", r"broken\.png: cannot be read as a picture"),
        ("--text x", "one thing to predict from; met nothing"),
        ("--image a.png --video . --text x", "met --image and --video"),
        ("--image a.png", "nothing is asked"),
        ("--images .", "--images FOLDER with --texts FILE"),
        ("--images . --texts t.txt --text x", "--images FOLDER with --texts FILE"),
        ("--images . --texts none.txt", r"none\.txt: cannot be read as text"),
        ("--video . --text x --region a.png", "--region, --box and --point need --image"),
        ("--video . --text x --point 1,1", "--region, --box and --point need --image"),
        ("--image a.png --point 1", r"--point: not a point; met '1'; wanted X,Y in pixels; more clicks"),
        ("--image a.png --box 1,2,3", r"--box: not a box; met '1,2,3'; wanted X0,Y0,X1,Y1 in pixels"),
        ("--image a.png --point 451,1", r"a\.png: a point outside the picture; met 451,1; wanted 0 <= X < 451"),
        ("--image a.png --box 9,9,9,9", r"a\.png: a box that is empty or outside the picture"),
        ("--image a.png --region b.png", r"b\.png: a region of another size.*met 300 x 512; wanted 451 x 300"),
        ("--video none --text x", "no folder of pictures"),
        ("--image a.png --text x --recipe best", "unknown recipe"),
        ("--image a.png --text x --model none", "none"),
        ("--image a.png --text x --device gpu", "no such device"),
        ("--video a.png --text x", r"a\.png: cannot be read as a video; met .*; wanted mov, mp4, matroska, webm"),
        ("--video . --text x --propagate sam2", r"--propagate sam2: the model has no mask decoder of SAM 2's own"),
        ("--video . --text x --sam2 none.pt", r"none\.pt: no such file; wanted a SAM 2 checkpoint"),
    ],
)
def test_a_user_s_mistake_is_one_line(folder, files, monkeypatch, capsys, options, message):
    monkeypatch.chdir(files)
    words = [*options.split(), *([] if "--model" in options else ["--model", str(folder)]), "--max-new-tokens", "1"]
    monkeypatch.setattr(sys, "argv", ["cli.py", "predict", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    line = str(stopped.value.code)
    assert line.startswith("error: ") and "\n" not in line
    assert re.search(message, line), line
    assert not (files / "runs").exists()


def test_batched_questions_give_the_answers_of_single_ones(talker, files, photos):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=2)
    questions = "a.png\tPlease segment the cat.\n\nb.png\tWhere?\nbroken.png\tWhat?\na.png\tWhere?\nc.png\tThe cup?\n"
    (files / "texts.tsv").write_text(questions)
    lines = []
    with pytest.raises(UserError, match=r"1 of 5 questions are not answered.*broken\.png"):
        for line in predict(lambda: predictor, files / "out", images=files, texts=files / "texts.tsv", batch_size=3):
            lines.append(line)
    expected = {"00001-a": (0, "Please segment the cat."), "00003-b": (1, "Where?"), "00005-a": (0, "Where?")}
    expected |= {"00006-c": (2, "The cup?")}
    assert [line.split(":")[0] for line in lines] == list(expected)
    assert not list(files.glob("out/00004*"))
    for name, (photo, text) in expected.items():
        (answer,) = predictor.segment([photos[photo]], [text])
        noted = json.loads((files / "out" / f"{name}.json").read_text())
        assert noted["answer"] == answer.text and len(noted["masks"]) == len(answer.masks)
        for file, mask in zip(noted["masks"], answer.masks, strict=True):
            assert ((read(files / "out" / file) > 0) != mask).mean() < 1e-4


def test_phrases_of_an_answer_are_noted_with_their_masks(predictor, files, photos, monkeypatch):
    said = "<p>A cat</p> [SEG] [SEG] on <p>a mat</p>, [SEG]."
    answer = Answer(said, np.zeros((3, *photos[0].shape[:2]), bool))
    monkeypatch.setattr(predictor, "segment", lambda *args: [answer])
    list(predict(lambda: predictor, files / "out", image=files / "a.png", text="What is this?"))
    noted = json.loads((files / "out" / "a.json").read_text())
    assert (noted["answer"], noted["plain"]) == (said, "A cat on a mat,.")
    assert noted["phrases"] == [
        {"text": "A cat", "start": 0, "end": 5, "masks": ["a.mask1.png", "a.mask2.png"]},
        {"text": "a mat", "start": 9, "end": 14, "masks": ["a.mask3.png"]},
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("a.png Where?", "not a question"),
        ("a.png\t", "not a question"),
        ("a.png\t<image> <image>", "not a question"),
        ("d.png\tWhere?", r"line 2: no such picture; met d\.png"),
        ("../a.png\tWhere?", "no such picture"),
        ("/etc/hostname\tWhere?", "no such picture"),
        ("", "no questions"),
    ],
)
def test_lines_that_are_no_questions(files, line, message):
    (files / "t.tsv").write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=message):
        list(predict(never, files / "out", images=files, texts=files / "t.tsv"))


def test_a_region_is_described(predictor, files, photos):
    region = np.zeros(photos[0].shape[:2], bool)
    region[20:200, 100:300] = True
    Image.fromarray(region).save(files / "region.png")
    (line,) = predict(lambda: predictor, files / "out", image=files / "a.png", regions=[files / "region.png"])
    (caption,) = predictor.describe([photos[0]], [region[None]])
    assert line == f"a.png: {caption}"
    assert json.loads((files / "out" / "a.json").read_text())["answer"] == caption


def test_boxes_and_clicks_are_described(predictor, files, photos):
    """Regions are numbered: drawn ones, boxes, points."""
    drawn = np.zeros(photos[0].shape[:2], bool)
    drawn[20:200, 100:300] = True
    Image.fromarray(drawn).save(files / "drawn.png")
    prompts = [parse_prompt("90,50,300.5,200+100,100-5,5", box=True), parse_prompt("30,40", box=False)]
    out = files / "out"
    run = {"image": files / "a.png", "regions": [files / "drawn.png"], "prompts": prompts}
    (line,) = predict(lambda: predictor, out, **run)
    box = region_at(predictor, photos[0], box=(90, 50, 300.5, 200), points=[(100, 100), (5, 5)], labels=[True, False])
    regions = np.stack([drawn, box, region_at(predictor, photos[0], points=[(30, 40)])])
    (caption,) = predictor.describe([photos[0]], [regions])
    assert line == f"a.png: {caption}"
    noted = json.loads((out / "a.json").read_text())
    assert noted["answer"] == caption and noted["regions"] == [
        str(files / "drawn.png"),
        "a.region2.png",
        "a.region3.png",
    ]
    for number, region in enumerate(regions, 1):
        assert np.array_equal(read(out / f"a.region{number}.png") > 0, region)
    assert (read(out / "a.overlay.png")[regions.any(0)] != photos[0][regions.any(0)]).any()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_masks_and_overlay_of_a_video(talker, photos, tmp_path, monkeypatch, kind):
    frames = [np.roll(photos[0][:100, :300], 9 * i, 1) for i in range(4)]
    video = tmp_path / ("clip" if kind == "folder" else "clip.mp4")
    names = [f"{i + 8}.png" for i in range(4)] if kind == "folder" else [f"{i:05d}" for i in range(4)]
    if kind == "folder":
        video.mkdir()
        for name, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(video / name)
    else:
        write_h264(video, frames, rate=6)
        frames = read_h264(video)
    monkeypatch.setattr("inference.tracking.FRAMES_SEEN", 2)
    predictor = Predictor(LoadedModel(talker), max_new_tokens=1)
    (line,) = predict(lambda: predictor, tmp_path / "out", video=video, text="Where?")
    track = predictor.track(frames, "Where?")
    assert line == f"{video.name}: {track.text}"
    noted = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert noted["objects"] == track.objects == 1 and noted["video"] == str(video)
    assert [f["frame"] for f in noted["frames"]] == names
    shown = read_h264(tmp_path / "out" / "clip.overlay.mp4", rate=10 if kind == "folder" else 6)
    assert len(shown) == 4 and not list((tmp_path / "out").glob(".*"))
    for noted_frame, masks, frame, overlay in zip(noted["frames"], track.masks, frames, shown, strict=True):
        (file,) = noted_frame["masks"]
        assert file == f"{Path(noted_frame['frame']).stem}.mask1.png"
        assert ((read(tmp_path / "out" / file) > 0) != masks[0]).mean() < 1e-3
        red = overlay[..., 0].astype(int) - frame[..., 0]  # the first object's colour
        # Colours have half the resolution, so that a random mask's finest parts bleed.
        assert 0.02 < masks.mean() < 0.98 and red[masks[0]].mean() > red[~masks[0]].mean() + 8


def test_out_that_is_a_file(predictor, files):
    for out in (files / "b.png", files / "b.png" / "deeper"):
        with pytest.raises(UserError, match=r"b\.png: a file, not a folder; give another --out"):
            predict(pytest.fail, out, image=files / "a.png", text="x")


def test_out_that_may_not_be_written(predictor, files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(UserError, match="nothing can be written here; met no permission"):
        predict(pytest.fail, tmp_path / "x", image=files / "a.png", text="x")


def test_precision_and_device_are_decided_in_one_place(folder):
    half = load(folder, dtype="bfloat16", device="cpu").model
    assert half.embedding.weight.dtype.itemsize == 2 and half.device.type == "cpu"
    assert load(folder, device="cpu").model.embedding.weight.dtype.itemsize == 4
    with pytest.raises(UserError, match="unknown dtype"):
        load(folder, dtype="int8")


def test_no_part_of_prediction_names_a_device():
    for path in [*REPOSITORY.glob("inference/*.py"), *REPOSITORY.glob("trainer/model/*.py")]:
        assert ".cuda()" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("a frame that is broken")])
def test_an_interrupted_video_leaves_whole_masks_and_nothing_half_written(photos, tmp_path, error):
    """Nor the overlay and the answer of an earlier run, to which other masks belong."""
    video = tmp_path / "clip.mp4"
    write_h264(video, [np.roll(photos[0][:100, :300], 9 * i, 1) for i in range(4)], rate=6)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("clip.json", "clip.overlay.mp4", "00000.mask2.png", "00000.mask3.png", "00003.mask1.png"):
        (out / name).write_text("of an earlier answer")

    def masks():
        yield from (np.ones((1, 100, 300), np.bool_) for _ in range(2))
        raise error

    predictor = SimpleNamespace(track=lambda *_: Track("[SEG]", 1, masks()))
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        list(predict(lambda: predictor, out, video=video, text="Where?"))
    assert sorted(path.name for path in out.iterdir()) == ["00000.mask1.png", "00001.mask1.png", "00003.mask1.png"]
    assert all((read(out / f"0000{i}.mask1.png") == 255).all() for i in range(2))
