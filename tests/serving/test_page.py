"""The API over HTTP: what a chat in Python answers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pycocotools import mask as coco

from inference.predictor import Predictor
from tests.inference.videos import write_h264
from tests.serving.conftest import ANSWER, PLAIN

DOCUMENT = Path(__file__).parents[2] / "docs" / "SERVING.md"


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, verbose=False, httpx_kwargs={"timeout": 60})


def ask(client: Client, *values: object) -> dict:
    return client.predict(*values, api_name="/ask")


def decoded(masks: list[dict]) -> np.ndarray:
    return np.stack([coco.decode(mask) for mask in masks]).astype(bool)


def test_a_conversation_is_that_of_a_chat(client: Client, speaker: Predictor, photos, cat):
    chat = speaker.chat(photos[0])
    first = ask(client, "Please segment the cat.", handle_file(cat))
    expected = chat.ask("Please segment the cat.")
    assert (first["text"], first["plain"]) == (expected.text, expected.plain) == (ANSWER, PLAIN)
    assert first["phrases"] == [
        {"text": "A cat", "start": 0, "end": 5, "masks": [0]},
        {"text": "an <b>eye</b> & ear", "start": 11, "end": 30, "masks": [1]},
    ]
    assert np.array_equal(decoded(first["masks"]), expected.masks) and expected.masks.shape == (2, 300, 451)
    second = ask(client, "And where is its nose?")
    expected = chat.ask("And where is its nose?")
    assert np.array_equal(decoded(second["masks"]), expected.masks)
    alone = speaker.chat(photos[0]).ask("And where is its nose?")
    assert not np.array_equal(decoded(second["masks"]), alone.masks)  # the earlier turn counts


def test_regions_come_from_a_box_from_points_and_from_masks(client: Client, speaker: Predictor, photos, cat):
    chat = speaker.chat(photos[0])
    region = client.predict([100, 50, 300, 250], file=handle_file(cat), api_name="/region")
    box = chat.region_at(box=(100, 50, 300, 250))
    assert np.array_equal(decoded([region])[0], box)
    points = client.predict(points=[[120, 80], [400, 280]], labels=[True, False], api_name="/region")
    assert np.array_equal(decoded([points])[0], chat.region_at(points=[(120, 80), (400, 280)], labels=[True, False]))
    polygon = [[10, 10, 200, 10, 200, 200, 10, 200]]
    answer = ask(client, "", None, [region, polygon])
    square = np.zeros((300, 451), bool)
    square[10:200, 10:200] = True
    question = "Please generate a detailed description for the given image region. Describe region1, region2."
    assert np.array_equal(decoded(answer["masks"]), chat.ask(question, np.stack([box, square])).masks)


@pytest.mark.slow
def test_a_video_has_masks_of_each_frame(client: Client, speaker: Predictor, photos, tmp_path):
    frames = [np.roll(photos[0][:200, :300], 8 * i, 1) for i in range(3)]
    write_h264(tmp_path / "cat.mp4", frames, 5)
    answer = ask(client, "Please segment the cat.", handle_file(tmp_path / "cat.mp4"))
    assert answer["plain"] == PLAIN
    assert [len(masks) for masks in answer["masks"]] == [3, 3]
    assert decoded(answer["masks"][0]).shape == (3, 200, 300)


def test_the_example_of_the_document_runs(address, cat, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(cat.parent)
    exec(compile(code.replace("http://127.0.0.1:7860/", address), str(DOCUMENT), "exec"), {})
    assert capsys.readouterr().out.startswith(PLAIN)


def test_mistakes_are_one_line_and_other_files_stay_closed(client: Client, cat, tmp_path, capsys):
    (tmp_path / "text.png").write_text("text")
    closed = {"path": str(cat), "meta": {"_type": "gradio.FileData"}}
    ask(client, "What?", handle_file(cat))
    for values, message in (
        (("",), 'no question; wanted words such as "Please segment the dog.", or a marked region'),
        (("x" * 301,), "too long a question; met 301 characters; wanted <= 300"),
        (("x", handle_file(tmp_path / "text.png")), "cannot be read as a picture; met none of these formats"),
        (("x", None, [{"size": [3, 3], "counts": "zz"}]), "mask and picture differ in size"),
        (("x", None, {"a": 1}), "regions: not a list"),
        (("x", None, [[[0, 0, 9, 0, 9, 9]]] * 4), "too many regions; met 4; wanted at most 3"),
    ):
        with pytest.raises(AppError, match=re.escape(message)) as caught:
            ask(client, *values)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    for box in ([1, 2, 3], ["a", 1, 2, 3], [5, 5, 1, 1], [0, 0, 1e9, 1e9]):
        with pytest.raises(AppError, match=r"not numbers|outside the picture"):
            client.predict(box, api_name="/region")
    for name in ("/ask", "/region"):
        for path in (closed["path"], "/etc/passwd", "http://127.0.0.1:9/x.png", "https://example.org/x.png"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            with pytest.raises((AppError, ValueError), match=r"must be uploaded|upload the file"):
                raw_call(client, name, file)
    assert "Traceback" not in "".join(capsys.readouterr())
    client.predict(api_name="/new")
    with pytest.raises(AppError, match="no conversation, or it has ended; upload a picture"):
        ask(client, "x")


def raw_call(client: Client, name: str, file: dict) -> None:
    """Call with a file that is named, not uploaded."""
    data = ["x", file, None] if name == "/ask" else [None, [[1, 1]], None, file]
    joined = client_post(client, f"gradio_api/call{name}", {"data": data})
    events = client_get(client, f"gradio_api/call{name}/{joined['event_id']}")
    raise ValueError(events)


def client_post(client: Client, path: str, body: dict) -> dict:
    import httpx

    return httpx.post(f"{client.src.rstrip('/')}/{path}", json=body, timeout=60).json()


def client_get(client: Client, path: str) -> str:
    import httpx

    return httpx.get(f"{client.src.rstrip('/')}/{path}", timeout=60).text
