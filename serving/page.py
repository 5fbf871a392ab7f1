"""The page, as gradio draws it, and the calls of the API."""

from __future__ import annotations

import functools
import html
import inspect
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from gradio.state_holder import SessionState

from evaluation.published.predictions import encode
from inference.chat import Reply
from pipeline.masks import from_coco
from pipeline.resize import Bool
from serving import drawing
from serving.session import VIDEOS, Session, Sessions
from shards.errors import UserError

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CSS = """
.gradio-container { max-width: 1280px !important; width: 100% !important; margin: 0 auto }
footer { display: none !important }
.talk { font-size: 1rem; line-height: 1.5; overflow-wrap: anywhere }
.talk .question { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: .6rem; padding: .5rem .8rem; margin: .6rem 0 .6rem 12% }
.talk .answer { padding: .2rem .2rem .6rem; border-bottom: 1px solid var(--border-color-primary) }
.talk img, .talk video { max-width: 100%; max-height: 60vh; border-radius: .4rem; margin: .4rem 0 }
.talk .question img { max-height: 12rem }
.talk mark { border-radius: .25rem; padding: 0 .25rem }
.talk p { margin: .2rem 0 }
"""
_GREETING = "Upload a picture or a video, then ask about it."
_HINTS = 'Such as "Please segment the cat.", "What is in the picture?", or "What is region1?" for a marked region.'
_ONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one answer at a time
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_SHOWN_EVERY = 0.2
"""Least seconds between two parts of an answer: at each of them gradio's page uploads the picture in its editor."""
_ON_IT, _BESIDE_IT, _BOX = "It is here", "It is not here", "Box: two corners"


def _answering(handler: Callable[..., Any], shown: Callable[[UserError], str]) -> Callable[..., Any]:
    """Return a handler whose errors reach the visitor in one line, and whose faults only the server's log.

    Args:
        handler: a function or a generator.
        shown: the text of an error.
    """

    def told(error: Exception) -> gr.Error:
        if isinstance(error, UserError):
            return gr.Error(shown(error), print_exception=False)
        if isinstance(error, gr.Error):
            return error
        traceback.print_exception(error, file=sys.stderr)
        return gr.Error("the server failed at this; its own output says how", print_exception=False)

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generating(*values: Any, **named: Any) -> Iterator[Any]:
            try:
                yield from handler(*values, **named)
            except Exception as error:
                raise told(error) from None

        return generating

    @functools.wraps(handler)
    def returning(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except Exception as error:
            raise told(error) from None

    return returning


def _for_page(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler whose errors the page shows, as HTML."""
    return _answering(handler, lambda error: html.escape(str(error)))


def _for_api(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler whose errors are text."""
    return _answering(handler, str)


class _Blocks(gr.Blocks):
    """gradio's page, which takes files only as uploads: gradio itself would fetch addresses."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: SessionState | None, explicit_call: bool = False
    ) -> Any:
        """Prepare the values of a call.

        Raises:
            gr.Error: files at addresses, files of the server, values of another kind.
        """
        if any(path.lower().startswith(("http:", "https:")) for path in _paths(inputs)):
            raise gr.Error(str(UserError("a file at an address", do="upload the file")), print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error:
            raise
        except Exception:  # what it raises depends on what was sent
            raise gr.Error(
                "values that this call does not take; files must be uploaded", print_exception=False
            ) from None


class Page:
    """Handlers of the page's events. Each method is a handler of one event, and returns what the parts show then."""

    def __init__(self, sessions: Sessions, folder: Path) -> None:
        """Answer with `sessions`; uploads lie in `folder`."""
        self._sessions = sessions
        self._folder = folder.resolve()

    def build(self, title: str) -> gr.Blocks:
        """Return the page."""
        with _Blocks(title=title, analytics_enabled=False, delete_cache=(60, 3600)) as page:
            gr.HTML(f"<h1>{html.escape(title)}</h1>")
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    upload = gr.File(
                        label="Picture or video", file_types=[*PICTURES, *VIDEOS], type="filepath", height=140
                    )
                    with gr.Column(visible=False) as marking:
                        note, editor, pointing, kind, again, another, none = self._marking()
                with gr.Column(scale=1, min_width=320):
                    talk = gr.HTML(
                        f"<p>{_GREETING}</p>", elem_classes="talk", elem_id="talk", max_height=680, autoscroll=True
                    )
                    question = gr.Textbox(
                        label="Question", info=_HINTS, lines=1, max_lines=6, elem_id="question", submit_btn=False
                    )
                    with gr.Row():
                        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
                        stop = gr.Button("Stop", elem_id="stop", min_width=100)
                        new = gr.Button("New conversation", elem_id="new", min_width=100)
            self._api()  # first, so that its names are its own
            canvases = [note, editor, pointing]
            shown = [talk, question, *canvases]
            opening = upload.upload(self.open, upload, [*shown, marking], **_QUIET, **_ONE)
            opening.failure(lambda: None, None, upload, **_QUIET)  # so that another file can be uploaded
            gr.on([upload.clear, new.click], self.new, None, [*shown, marking, upload], **_QUIET)
            asking = gr.on([ask.click, question.submit], self.ask, [question, editor], [talk, question], **_QUIET)
            # "multiple": else gradio's page does not begin an answer before the end of the one before has arrived.
            outputs = [talk, *canvases]
            answering = asking.success(self.answer, None, outputs, trigger_mode="multiple", **_QUIET, **_ONE)
            answering.failure(self.failed, None, [talk, question], **_QUIET)
            # No `cancels`: with it gradio's page closes its stream of events before what Stop returns has arrived.
            stop.click(self.stop, None, talk, **_QUIET)
            # "multiple": else a click is lost while the one before is worked on.
            pointing.select(self.point, kind, pointing, trigger_mode="multiple", **_QUIET, **_ONE)
            again.click(self.clear_points, None, pointing, **_QUIET)
            another.click(self.keep, editor, canvases, **_QUIET)
            none.click(self.clear_regions, None, canvases, **_QUIET)
            page.unload(self.leave)
        return page

    def _marking(self) -> tuple[Any, ...]:
        """Add the parts that mark regions."""
        note = gr.Markdown(elem_id="note")
        with gr.Tabs():
            with gr.Tab("Draw"):
                editor = gr.ImageEditor(
                    type="numpy",
                    label="Paint",
                    sources=(),
                    transforms=(),
                    brush=gr.Brush(colors=["#d55e00"], color_mode="fixed"),
                    layers=False,
                    buttons=[],
                    elem_id="editor",
                )
            with gr.Tab("Point", elem_id="point-tab"):
                kind = gr.Radio([_ON_IT, _BESIDE_IT, _BOX], value=_ON_IT, label="A click means", elem_id="kind")
                pointing = gr.Image(label="Click", interactive=False, buttons=[], elem_id="pointing", format="png")
                again = gr.Button("Forget the clicks", size="sm")
        with gr.Row():
            another = gr.Button("Mark one more region", size="sm", elem_id="another")
            none = gr.Button("Remove all regions", size="sm", elem_id="none")
        return note, editor, pointing, kind, again, another, none

    def _api(self) -> None:
        """Add the calls of the API, whose parts the page does not show."""
        file = gr.File(visible=False, label="file: a picture or a video, which begins a conversation")
        question = gr.Textbox(visible=False, label="question")
        regions = gr.JSON(visible=False, label="regions: masks in one of COCO's encodings")
        box = gr.JSON(visible=False, label="box: x0, y0, x1, y1 in pixels")
        points = gr.JSON(visible=False, label="points: a list of x, y in pixels")
        labels = gr.JSON(visible=False, label="labels: true for each point that lies in the region")
        found = gr.JSON(visible=False, label="answer")
        mask = gr.JSON(visible=False, label="mask")
        button = gr.Button(visible=False)
        button.click(self.api_ask, [question, file, regions], found, api_name="ask", **_ONE)
        button.click(self.api_region, [box, points, labels, file], mask, api_name="region", **_ONE)
        button.click(self.api_new, None, None, api_name="new")

    @_for_page
    def open(self, upload: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Begin a conversation about an upload."""
        session = self._sessions.start(_key(request), self._uploaded(upload))
        return _turns(session), "", *_canvases(session), gr.update(visible=session.frames is None)

    @_for_page
    def new(self, request: gr.Request) -> tuple[Any, ...]:
        """End the conversation."""
        self._sessions.end(_key(request))
        return self._talk(request), "", "", None, None, gr.update(visible=False), None

    @_for_page
    def ask(self, question: str, painted: dict[str, Any] | None, request: gr.Request) -> tuple[str, str]:
        """Take a question, and show it: the model may be busy with another visitor's."""
        session = self._sessions.get(_key(request))
        session.ask(question, _layers(painted))
        return _turns(session), ""

    @_for_page
    def answer(self, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answer the question that waits, and show the answer as it grows; last, what the conversation is now."""
        unchanged = [gr.skip()] * 3
        try:
            session = self._sessions.get(_key(request))
        except UserError:  # the conversation ended while the question waited
            yield self._talk(request), *unchanged
            return
        with session.taken_question() as question:
            if question is None:  # it was stopped
                yield gr.skip(), *unchanged
                return
            for shown in self._parts(session, *question):
                yield shown, *unchanged
        if session.closed:
            yield self._talk(request), *unchanged
        else:
            yield _turns(session), *(unchanged if session.stopped else _canvases(session))

    def _parts(self, session: Session, text: str, regions: Sequence[Bool], asked: str) -> Iterator[str]:
        """Answer a question, and yield the turns before it and its answer as far as it is there, as HTML."""
        earlier = "".join(session.turns)
        shown = 0.0
        with closing(session.stream(text, regions)) as stream:
            for part in stream:
                if isinstance(part, str):
                    if time.monotonic() - shown > _SHOWN_EVERY:
                        shown = time.monotonic()
                        yield earlier + drawing.streaming_html(asked, part)
                    continue
                yield earlier + drawing.streaming_html(asked, part.plain)
                drawn = session.draw(part)
                if not session.closed:
                    session.turns.append(asked + drawing.answer_html(part, drawn))
                    session.clear_regions()
                    session.stopped = False  # too late

    @_for_page
    def failed(self, request: gr.Request) -> tuple[str, str]:
        """Show the turns before a question that could not be answered, and give back its text."""
        try:
            session = self._sessions.get(_key(request))
        except UserError:
            return self._talk(request), ""
        session.waiting = None
        return _turns(session), session.text

    @_for_page
    def stop(self, request: gr.Request) -> Any:
        """End the answer that is generated: its turn is not kept, and `answer` shows the turns before it."""
        session = self._sessions.get(_key(request))
        return _turns(session) if session.stop() else gr.skip()

    @_for_page
    def point(self, kind: str, place: gr.SelectData, request: gr.Request) -> Any:
        """Take a click on the picture."""
        session = self._sessions.get(_key(request))
        x, y = place.index
        if kind == _BOX:
            session.click_corner(float(x), float(y))
        else:
            session.click(float(x), float(y), kind == _ON_IT)
        return session.pointed_view()

    @_for_page
    def keep(self, painted: dict[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        """Finish the region in progress, so that one more can be marked."""
        session = self._sessions.get(_key(request))
        session.keep(_layers(painted))
        return _canvases(session)

    @_for_page
    def clear_points(self, request: gr.Request) -> Any:
        """Forget the clicks."""
        session = self._sessions.get(_key(request))
        session.clear_points()
        return _canvases(session)[-1]

    @_for_page
    def clear_regions(self, request: gr.Request) -> tuple[Any, ...]:
        """Remove all regions."""
        session = self._sessions.get(_key(request))
        session.clear_regions()
        return _canvases(session)

    def leave(self, request: gr.Request) -> None:
        """End the conversation of a browser or a program that has gone."""
        self._sessions.end(_key(request))

    @_for_api
    def api_ask(
        self, question: str, request: gr.Request, file: str | None = None, regions: Any = None
    ) -> dict[str, Any]:
        """Answer a question.

        Args:
            question: "" describes the regions.
            request: says whose conversation it is.
            file: a picture or a video; None goes on with the conversation.
            regions: masks of the picture's size, in one of COCO's encodings.
        """
        with self._conversation(file, request) as session:
            masks = _decoded(regions, session)
            parts = [*session.stream(session.checked(question, len(masks)), masks)]
            if not parts or isinstance(reply := parts[-1], str):
                raise UserError("the conversation has ended")
            phrases = [
                {"text": phrase.text, "start": phrase.start, "end": phrase.end, "masks": [*phrase.numbers]}
                for phrase in reply.phrases
            ]
            return {"text": reply.text, "plain": reply.plain, "phrases": phrases, "masks": _encoded(reply)}

    @_for_api
    def api_region(
        self, request: gr.Request, box: Any = None, points: Any = None, labels: Any = None, file: str | None = None
    ) -> dict[str, Any]:
        """Return the region that a box or points mean.

        Args:
            request: says whose conversation it is.
            box: left, top, right and bottom in pixels, or None.
            points: x and y of each, in pixels, or None.
            labels: of each point, whether it lies in the region; None: all do.
            file: a picture; None goes on with the conversation.
        """
        with self._conversation(file, request) as session:
            corners = _numbers("box", box or [], (4,) if box else (0,))
            places = [_numbers("points", point, (2,)) for point in _list("points", points)]
            mask = session.chat.region_at(
                box=tuple(corners) or None, points=places, labels=[bool(label) for label in _list("labels", labels)]
            )
            return encode(mask)

    @_for_api
    def api_new(self, request: gr.Request) -> None:
        """End the conversation."""
        self._sessions.end(_key(request))

    def _talk(self, request: gr.Request) -> str:
        """Return what the page shows of its conversation, as HTML; without one, how to begin it."""
        try:
            return _turns(self._sessions.get(_key(request)))
        except UserError:
            return f"<p>{_GREETING}</p>"

    @contextmanager
    def _conversation(self, file: str | None, request: gr.Request) -> Iterator[Session]:
        """Give the conversation of a call; without a key of the caller's it ends with the call."""
        key = _key(request)
        try:
            yield self._sessions.get(key) if file is None else self._sessions.start(key, self._uploaded(file))
        finally:
            if request.session_hash is None:
                self._sessions.end(key)

    def _uploaded(self, path: str | None) -> Path:
        """Return the path of an upload.

        Raises:
            UserError: it is another file of the server, or none.
        """
        if path is None or not Path(path).resolve().is_relative_to(self._folder) or not Path(path).is_file():
            raise UserError("no uploaded file", do="upload it again")
        return Path(path)


def _key(request: gr.Request) -> str:
    return str(request.session_hash or uuid4().hex)


def _turns(session: Session) -> str:
    """Return the turns of a conversation as HTML; without any, what can be asked about."""
    if session.waiting is not None:
        return "".join(session.turns) + drawing.streaming_html(session.waiting[-1], "")
    if session.turns or session.stopped:
        return "".join(session.turns) + ("<p>Stopped.</p>" if session.stopped else "")
    what = "picture" if session.frames is None else f"video of {len(session.frames):,} frames"
    return f"<p>Ask about the {what}.</p>"


def _layers(painted: dict[str, Any] | None) -> Sequence[Any]:
    return (painted or {}).get("layers") or ()


def _canvases(session: Session) -> tuple[Any, Any, Any]:
    """Return what the parts that mark regions show: the next region's name, nothing painted, the finished regions."""
    marked = session.marked(session.regions_with(()))
    name = f"region{session.chat.regions + len(session.regions) + 1}"
    note = f"Mark a region to ask about it: it is called **{name}** in the question."
    return note, {"background": marked, "layers": [], "composite": None}, marked


def _encoded(reply: Reply) -> list[Any]:
    """Return the masks of a reply in COCO's encoding; those of a video as a list with one for each frame."""
    if reply.track is None:
        return [encode(mask) for mask in reply.masks]
    frames = [[encode(mask) for mask in masks] for masks in reply.track.masks]
    return [[frame[n] for frame in frames] for n in range(reply.track.objects)]


def _decoded(regions: Any, session: Session) -> list[Bool]:
    given = _list("regions", regions)
    session.check_regions(len(given))
    return [from_coco(region, *session.picture.shape[:2]) for region in given]


def _list(name: str, values: Any) -> list[Any]:
    if values is not None and not isinstance(values, list):
        raise UserError("not a list", where=name, met=str(values)[:40])
    return values or []


def _numbers(name: str, values: Any, counts: tuple[int, ...]) -> Any:
    is_number = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not is_number or len(values) not in counts:
        raise UserError("not numbers", where=name, met=str(values)[:40], wanted=f"a list of {counts[0]}")
    return tuple(map(float, values))


def _paths(values: Any) -> Iterator[str]:
    """Yield what nested values name as paths of files."""
    if isinstance(values, dict):
        if isinstance(values.get("path"), str):
            yield values["path"]
        values = [*values.values()]
    if isinstance(values, list):
        for value in values:
            yield from _paths(value)
