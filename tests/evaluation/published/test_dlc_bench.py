"""DLC-Bench: what a judge is asked, how its verdicts count, and a model's own descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.published.compare import compare
from evaluation.published.datasets import Options
from evaluation.published.datasets.dlc_bench import QUESTION, choice_of, questions_of
from evaluation.published.judge import Judge
from evaluation.published.predictions import Prediction, read_predictions
from evaluation.published.run import Asking, benchmark
from inference.predictor import Predictor
from shards.errors import BadInput, UserError
from tests.evaluation.published.conftest import OBJECTS, PHOTOS, truth_of
from tests.evaluation.published.judges import JudgeServer, judge_server
from tests.pipeline.sources.videos import run_lengths
from trainer.model.prompts import description_question
from trainer.released.loaded import LoadedModel

REGIONS = {11: "cat", 21: "glasses", 31: "orange"}
COLOUR = {
    "question": "Which is applicable?",
    "choices": [["It is red.", -1], ["It is not mentioned.", 0], ["It is a colour.", 0.5], ["It is grey.", 1]],
    "type": "positive",
}
SHAPE = {"question": "Is it round?", "choices": [["Yes", -1], ["No", 1]], "type": "negative"}
ASKED = {11: [COLOUR, SHAPE], 21: [COLOUR, COLOUR | {"question": "And this?"}], 31: [SHAPE, COLOUR]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    folder = root / "DLC-bench"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in REGIONS:
        picture = OBJECTS[number][0]
        pixels = PHOTOS[picture]
        Image.fromarray(pixels).save(folder / f"images/{picture}.jpg")
        images.append({"id": picture, "file_name": f"{picture}.jpg", "height": len(pixels), "width": len(pixels[0])})
        annotations.append({"id": number, "image_id": picture, "segmentation": run_lengths(truth_of(number))})
    files = {
        "annotations": {"images": images, "annotations": annotations},
        "qa": {str(number): questions for number, questions in ASKED.items()} | {"99": [SHAPE]},
        "class_names": {str(number): name for number, name in REGIONS.items()},
    }
    for name, body in files.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    return root


def write(folder: Path, texts: dict[int, str]) -> Path:
    folder.mkdir()
    lines = [Prediction(str(item), "", text, ()).to_line() for item, text in texts.items()]
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))
    return folder / "predictions.jsonl"


def replies_of(server: JudgeServer, texts: dict[int, str], replies: dict[tuple[int, str], str]) -> None:
    """Teach a judge its reply to each question about a description."""
    for (number, question), reply in replies.items():
        for one in questions_of(REGIONS[number], ASKED[number], ""):
            if number in texts and question in one.text:
                server.replies[one.prompt(texts[number])] = reply


def measured(raw: Path, file: Path, server: JudgeServer | None) -> tuple[dict, dict, str]:
    judge = None if server is None else Judge(server.url, "m", attempts=2, pause=0.01)
    (said,) = benchmark(["dlc-bench"], raw, file.parent, predictions=file, options=Options(judge=judge))
    results = json.loads((file.parent / "results.json").read_text())
    return results["measures"], results["counts"], said


TEXTS = {11: "a grey <p> cat </p> [SEG]", 21: "glasses", 31: "an apple"}
PLAIN = {11: "a grey  cat", 21: "glasses", 31: "an apple"}
REPLIES = {
    (11, "likely"): "A. Yes",
    (11, "Which"): "D",
    (11, "round"): "It is B. No",
    (21, "likely"): "yes",
    (21, "Which"): "It is a colour.",
    (21, "And this"): "I cannot say",
    (31, "likely"): "No",
    (31, "Which"): "It is grey.",
    (31, "round"): "A",
}


def test_verdicts_count_as_describe_anything_counts_them(raw, tmp_path):
    file = write(tmp_path / "a", TEXTS)
    measures, _, said = measured(raw, file, None)
    assert measures == {} and "not measured: no judge has answered; give --judge" in said
    assert said.startswith(f"dlc-bench, val: {file}\n") and not (file.parent / "report.html").exists()
    with judge_server() as server:
        replies_of(server, PLAIN, REPLIES)
        measures, counts, said = measured(raw, file, server)
        # 11: 1 and 1. 21: (0.5 + 0) / 2, and no negative question. 31 is not recognised: min(1, 0) and min(-1, 0).
        assert measures == pytest.approx({"positive": 1.25 / 3, "negative": 0, "mean": 1.25 / 6})
        assert "judge: m" in said and "1 of 9 verdicts name no choice: they count 0" in said
        assert "1 regions of qa.json have no picture or annotation" in said and counts["published_items"] == 100
        asked = [prompt for prompt in server.prompts if "Is it likely" in prompt]
        assert (
            len(server.asked) == 9 and len(asked) == 3 and all(prompt.endswith("\nA. Yes\nB. No\n") for prompt in asked)
        )
        for text in (
            "the object in the description is a cat or",
            "objects in the description are glasses or",
            " an orange or",
        ):
            assert sum(text in prompt for prompt in asked) == 1
        assert measured(raw, file, server)[0] == measures and len(server.asked) == 9
    assert measured(raw, file, None)[0] == measures  # the verdicts are there
    assert "score 100.00" in (file.parent / "report.html").read_text()


def test_a_region_without_all_verdicts_is_left_out_and_two_models_are_compared(raw, tmp_path):
    other = {11: "a cat", 21: "something"}
    files = write(tmp_path / "a", TEXTS), write(tmp_path / "b", other)
    with judge_server() as server:
        replies_of(server, PLAIN, REPLIES)
        replies_of(server, other, REPLIES | {(11, "Which"): "A"})
        (lie,) = [one.prompt("glasses") for one in questions_of("glasses", ASKED[21], "") if "Which" in one.text]
        server.faults[lie] = ["html"] * 2
        measures, counts, said = measured(raw, files[0], server)
        assert measures["positive"] == 0.5 and counts["left_out"] == {"without a verdict on each question": 1}
        assert "no usable answer to 1 questions, such as " in said and "Sign in" in said
        measured(raw, files[0], server)
        measured(raw, files[1], server)
        requests = len(server.asked)
    said = compare(*files, tmp_path / "out", draws=50, options=Options(judge_model="m"))
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["items"] == 2 and found["measures"]["positive"]["difference"] == pytest.approx(-1)  # 1 and -1 of 11
    assert "A: judge: m" in said and len(server.asked) == requests
    with pytest.raises(UserError, match=r"dlc-bench: nothing to compare; met .*A: not measured: no judge"):
        compare(*files, tmp_path / "out", options=Options(judge_model="another"))


@pytest.mark.parametrize(
    "reply, choice",
    [
        ("b", 1),
        (" No ", 1),
        ("B. No", 1),
        ("a. anything", 0),
        ("I say no, no.", 1),
        ("yes or no", 1),
        ("not sure: yes", 0),
        ("no idea", 1),
        ("ye", 0),
        ("B\nbecause", 1),
        ("c", None),
        ("", None),
        ("perhaps", None),
    ],
)
def test_a_reply_names_a_choice(reply, choice):
    assert choice_of(reply, ["Yes", "No"]) == choice


def test_the_longest_of_choices_at_one_place_counts():
    choices = ["red", "red and blue", "blue"]
    assert choice_of("It is red and green.", choices) == 0 and choice_of("red and blue", choices) == 1
    assert choice_of("it is blue, no: red and blueish", choices) == 1 and choice_of("so: red or red and", choices) == 0
    assert choice_of("d and", choices) == 1


@pytest.mark.parametrize("change", [{"type": "other"}, {"choices": [["one", 1]]}, {"choices": "x"}, {"question": 3}])
def test_a_question_of_another_shape_is_told(change):
    with pytest.raises(BadInput, match="no question about a region"):
        questions_of("cat", [SHAPE | change], "x")
    with pytest.raises(BadInput, match="no questions of a region"):
        questions_of(None, [SHAPE], "x")


@pytest.mark.slow
def test_a_model_describes_each_region(raw, model_folder, talker, tmp_path):
    assert "<image>\n" + description_question(1) == QUESTION
    asking = Asking(str(model_folder), max_new_tokens=4, device="cpu", tiles=1)
    (said,) = benchmark(["dlc-bench"], raw, tmp_path, asking=asking)
    assert "give --judge, with --from for descriptions that are written" in said
    found = read_predictions(tmp_path / "dlc-bench-val/predictions.jsonl").of_item
    predictor = Predictor(LoadedModel(talker), max_new_tokens=4)
    for number in REGIONS:
        pixels = np.asarray(Image.open(raw / f"DLC-bench/images/{OBJECTS[number][0]}.jpg"))
        (expected,) = predictor.describe([pixels], [truth_of(number)[None]], [QUESTION])
        assert found[str(number)].answer == expected
