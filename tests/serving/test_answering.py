"""Questions of the page from the button to the answer, with a conversation that takes no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from inference.chat import Reply
from serving.page import Page
from serving.session import Session, Sessions
from shards.errors import UserError
from tests.serving.conftest import LIMITS

VISITOR = SimpleNamespace(session_hash="visitor")
REPLY = Reply("Yes.", "Yes.", np.zeros((0, 8, 8), np.bool_), (), None, 3, 0)
BUSY = "the question before is not answered yet"


class Talk:
    """Stands for a chat: `encode` is called first, then come the parts; `closed` counts the answers that ended."""

    turns = ()
    regions = 0

    def __init__(self) -> None:
        self.encode: Callable[[], object] = lambda: None
        self.parts: list[str | Reply] = ["Ye", REPLY]
        self.asked: list[str] = []
        self.closed = 0

    def stream(self, text: str, regions: np.ndarray | None) -> Iterator[str | Reply]:
        self.asked.append(text)
        self.encode()
        return self._stream()

    def _stream(self) -> Iterator[str | Reply]:
        try:
            yield from self.parts
        finally:
            self.closed += 1


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def page(talk: Talk, tmp_path: Path) -> Page:
    sessions = Sessions(None, LIMITS, tmp_path, print)
    folder = tmp_path / "files"
    folder.mkdir()
    sessions._kept["visitor"] = Session(talk, LIMITS, folder, np.zeros((8, 8, 3), np.uint8), None)
    return Page(sessions, tmp_path)


@pytest.fixture
def session(page: Page) -> Session:
    return page._sessions.get("visitor")


def ask(page: Page, text: str) -> str:
    return page.ask(text, None, VISITOR)[0]


def answer(page: Page) -> list[Any]:
    """Return what the page shows of the conversation at each part of an answer, and at its end."""
    return [shown for shown, *_ in page.answer(VISITOR)]


def is_unchanged(output: Any) -> bool:
    return output == gr.skip()


def test_a_question_is_shown_while_it_waits_and_then_answered(page, talk):
    assert "What?" in ask(page, "What?") and talk.asked == []
    first, *_, last = answer(page)
    assert "Ye &hellip;" in first and 'aria-busy="true"' in first
    assert "What?" in last and "Yes." in last and "aria-busy" not in last
    ask(page, "And?")
    assert "Yes." in answer(page)[-1] and talk.asked == ["What?", "And?"] and talk.closed == 2


def test_stop_ends_an_answer_after_its_present_part(page, session, talk):
    ask(page, "What?")
    parts = page.answer(VISITOR)
    assert "Ye" in next(parts)[0]
    with pytest.raises(gr.Error, match=BUSY):
        ask(page, "And?")
    assert is_unchanged(page.stop(VISITOR))  # the answer's end shows that it was stopped
    assert [shown for shown, *_ in parts] == ["<p>Stopped.</p>"]
    assert session.turns == [] and session.parts is None and talk.closed == 1
    ask(page, "And?")
    assert "Stopped." not in answer(page)[-1]
    assert is_unchanged(page.stop(VISITOR)) and not session.stopped  # there was none


def test_stop_takes_a_question_back_that_waits(page, talk):
    ask(page, "What?")
    with pytest.raises(gr.Error, match=BUSY):
        ask(page, "And?")
    assert page.stop(VISITOR) == "<p>Stopped.</p>"
    assert all(map(is_unchanged, answer(page))) and talk.asked == []


def test_stop_ends_an_answer_whose_picture_is_being_encoded(page, session, talk):
    def encode() -> None:
        with pytest.raises(gr.Error, match=BUSY):
            ask(page, "And?")
        page.stop(VISITOR)

    talk.encode = encode
    ask(page, "What?")
    assert answer(page) == ["<p>Stopped.</p>"] and session.turns == [] and session.parts is None


def test_a_question_asked_as_the_answer_before_ends_is_shown_and_answered(page, talk):
    ask(page, "What?")
    parts = page.answer(VISITOR)
    *_, last = (shown for shown, *_ in parts)
    assert "Yes." in last
    ask(page, "And?")
    assert "And?" in page._talk(VISITOR) and 'aria-busy="true"' in page._talk(VISITOR)
    assert "And?" in answer(page)[-1]


@pytest.mark.parametrize("error", [UserError("cannot be written", where="/files/x.mp4"), MemoryError()])
@pytest.mark.parametrize("where", ["encode", "draw"])
def test_after_a_failure_the_text_is_given_back_and_the_next_question_answered(
    page, session, talk, monkeypatch, where, error
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((talk, "encode") if where == "encode" else (session, "draw")), fail)
    ask(page, "What?")
    with pytest.raises(gr.Error):
        answer(page)
    assert page.failed(VISITOR) == ("<p>Ask about the picture.</p>", "What?")
    assert session.parts is None and talk.closed == (where == "draw")
    monkeypatch.undo()
    talk.encode = lambda: None
    ask(page, "And?")
    assert "Yes." in answer(page)[-1]


def test_a_question_that_the_queue_refuses_is_given_back(page, talk):
    ask(page, "What?")
    assert page.failed(VISITOR) == ("<p>Ask about the picture.</p>", "What?")
    ask(page, "What?")
    assert "Yes." in answer(page)[-1] and talk.asked == ["What?"]


@pytest.mark.parametrize("part", ["draw", "stream", "waiting"])
def test_a_new_conversation_ends_an_answer(page, session, talk, monkeypatch, part):
    def new(*_: object) -> None:
        page.new(VISITOR)

    ask(page, "What?")
    if part == "draw":
        monkeypatch.setattr(session, "draw", new)
    elif part == "stream":
        talk.encode = new
    else:
        new()
    assert "Upload a picture" in answer(page)[-1] and session.turns == [] and session.parts is None


def test_an_answer_ends_where_its_page_has_gone(page, session, talk):
    ask(page, "What?")
    parts = page.answer(VISITOR)
    next(parts)
    parts.close()  # as gradio drops it
    assert session.parts is None and not session.answering and talk.closed == 1


def test_an_answer_that_is_dropped_within_a_step_of_another_does_not_wait_for_itself(page, session):
    """As the garbage collector may drop it, in the thread of another visitor's step."""
    ask(page, "What?")
    parts = page.answer(VISITOR)
    next(parts)
    with session.working:
        parts.close()
    assert session.parts is None
