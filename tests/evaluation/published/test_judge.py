"""A judge behind an address: replies are kept, passing faults are tried again, lasting ones end in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.published.judge import FILE, Judge, Verdicts
from shards.errors import UserError
from tests.evaluation.published.judges import judge_server


def ask(url: str, folder: Path, prompts: list[str], **more) -> tuple[dict[str, str | None], dict[str, str]]:
    settings = {"model": "m", "pause": 0.01, "timeout": 60.0, "attempts": 3, "at_once": 2, **more}
    verdicts = Verdicts(folder, settings["model"])
    unusable = verdicts.ask(Judge(url, **settings), prompts, shown=False)
    return {prompt: verdicts.reply(prompt) for prompt in prompts}, unusable


def test_each_prompt_is_asked_once_whatever_happens(tmp_path):
    with judge_server({"one": "A", "two": "B. no"}) as server:
        found, unusable = ask(server.url, tmp_path, ["one", "two", "one"], key="secret")
        assert found == {"one": "A", "two": "B. no"} and not unusable
        (path, key, body), _ = sorted(server.asked, key=lambda request: request[2]["messages"][0]["content"])
        assert (path, key) == ("/v1/chat/completions", "Bearer secret")
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 300)
        assert sorted(server.prompts) == ["one", "two"]
        file = tmp_path / FILE
        assert "secret" not in file.read_text()
        file.write_bytes(file.read_bytes()[:-9])  # as a kill leaves it
        found, _ = ask(server.url + "/", tmp_path, ["one", "two", "three"])
        assert found == {"one": "A", "two": "B. no", "three": "A"} and len(server.asked) == 4
        assert ask(server.url, tmp_path, ["one", "two", "three"])[0] == found and len(server.asked) == 4
        ask(server.url, tmp_path, ["one"], model="another")
        assert len(server.asked) == 5
    assert Verdicts(tmp_path, "m").reply("two") == "B. no"
    with pytest.raises(UserError, match="replies of several judges; met another, m; give --judge-model"):
        Verdicts(tmp_path)


@pytest.mark.parametrize("fault", ["500", "429", "stall", "cut", "cut in the middle", "drip", "html", "no choices"])
def test_a_fault_that_passes_is_tried_again(tmp_path, fault):
    with judge_server({"one": "B"}, {"one": [fault, fault]}) as server:
        waits = fault in ("stall", "drip")
        settings = {"timeout": 1.0, "attempts": 10} if waits else {}  # a reply that is late is asked for again
        assert ask(server.url, tmp_path, ["one"], **settings) == ({"one": "B"}, {})
        times = len(server.asked)
        assert (times >= 3 if waits else times == 3) and server.prompts == ["one"] * times


@pytest.mark.parametrize("fault", ["html", "no choices", "no text", "null", "deep", "endless"])
def test_an_answer_without_a_reply_is_told_and_not_kept(tmp_path, fault):
    with judge_server({"one": "B"}, {"lie": [fault] * 3}) as server:
        found, unusable = ask(server.url, tmp_path, ["lie", "one"])
        assert found == {"lie": None, "one": "B"} and [*unusable] == ["lie"]
        assert ("more than 1,048,576 bytes" if fault == "endless" else "which has no reply") in unusable["lie"]
        assert len((tmp_path / FILE).read_text().splitlines()) == 1
        assert ask(server.url, tmp_path, ["lie"]) == ({"lie": "A"}, {})


@pytest.mark.parametrize(
    "fault, message",
    [
        ("500", "the judge does not answer; met HTTP 500, after 3 attempts"),
        ("stall", "the judge does not answer; met timed out, after 3 attempts"),
        ("401", "the judge refuses; met HTTP 401 the reason the reason"),
        ("307", "the judge refuses; met HTTP 307"),
        ("html", "no judge; met '<html>Sign in</html>', which has no reply"),
    ],
)
def test_a_fault_that_lasts_is_one_line(tmp_path, fault, message):
    with judge_server({}, {"*": [fault] * 9999}) as server, pytest.raises(UserError, match=message) as raised:
        timeout = 0.2 if fault == "stall" else 60.0
        ask(server.url, tmp_path, [str(n) for n in range(1000)], key="secret", timeout=timeout)
    assert str(server.server_port) in str(raised.value) and "secret" not in str(raised.value)
    assert len(server.asked) < 500


def test_what_was_replied_before_a_failure_is_kept(tmp_path):
    with judge_server({"one": "B"}, {"two": ["403"]}) as server:
        with pytest.raises(UserError, match="the judge refuses"):
            ask(server.url, tmp_path, ["one", "two"], at_once=1)
        assert json.loads((tmp_path / FILE).read_text())["reply"] == "B"
        assert ask(server.url, tmp_path, ["one", "two"])[0] == {"one": "B", "two": "A"}
        assert server.prompts == ["one", "two", "two"]
    with pytest.raises(UserError, match=r"the judge does not answer; met .*refused"):
        ask(server.url, tmp_path, ["three"])


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://me:word@x/v1", "http://x/ y", "http://x:y/"]
)
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(UserError, match="no address of a judge") as raised:
        Judge(url)
    assert "word" not in str(raised.value)
    with pytest.raises(UserError, match="a key that no header can hold"):
        Judge("http://localhost", key="a\nb")
