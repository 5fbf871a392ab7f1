"""Conversations of visitors: one per browser session, the oldest ended where there are too many."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from inference.pictures import read_picture
from inference.video import Frames, write_video
from pipeline.resize import Bool, UInt8
from serving import drawing
from serving.limits import Limits
from shards.errors import UserError
from trainer.model.prompts import description_question

if TYPE_CHECKING:
    from inference.chat import Chat, Reply
    from inference.predictor import Predictor

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Endings of the names of videos; all else is read as a picture."""


@dataclass
class Session:
    """One conversation about a picture or a video, and the regions that are marked for the next question."""

    chat: Chat
    limits: Limits
    folder: Path
    """Holds the files that the page shows of this conversation, and the video."""
    picture: UInt8
    """(H, W, 3); of a video, its first frame."""
    frames: Frames | None
    """Of a video."""
    regions: list[Bool] = field(default_factory=list)
    """(H, W) each: finished regions of the next question."""
    points: list[tuple[float, float]] = field(default_factory=list)
    """Places (x, y) that were clicked for the region in progress."""
    labels: list[bool] = field(default_factory=list)
    """Of each point, whether it lies in the region."""
    corner: tuple[float, float] | None = None
    """First corner of a box."""
    pointed: Bool | None = None
    """(H, W): the region that clicks or a box have made."""
    turns: list[str] = field(default_factory=list)
    """Question and answer of each turn, as HTML."""
    working: RLock = field(default_factory=RLock)
    """Held while the model works; again by the same thread where an answer that was dropped ends within a step."""
    waiting: tuple[str, list[Bool], str] | None = None
    """A checked question, its new regions (H, W), and both as HTML: the model has not begun to answer it."""
    text: str = ""
    """The last question as it was typed."""
    answering: bool = False
    """Whether a question of the page is being answered."""
    parts: Generator[str | Reply, None, None] | None = None
    """The answer that is generated; None where none is."""
    closed: bool = False
    stopped: bool = False
    """Whether the last question was stopped: its answer ends, or has ended, and is not kept."""
    step: int = field(init=False)
    """Side of the square of the picture's pixels that is one pixel on the page."""
    shown: UInt8 = field(init=False)
    """(h, w, 3): the picture as the page shows it."""

    def __post_init__(self) -> None:
        self.step = drawing.step_of(*self.picture.shape[:2])
        self.shown = drawing.shrunk(self.picture, self.step)

    def paint(self, layers: Sequence[UInt8]) -> list[Bool]:
        """Return a region (H, W) of each layer (h, w, 4) of the brush that is painted."""
        height, width = self.shown.shape[:2]
        painted = [drawing.strokes(layer, height, width) for layer in layers]
        return [drawing.grown_mask(mask, self.step, *self.picture.shape[:2]) for mask in painted if mask is not None]

    def click(self, x: float, y: float, inside: bool) -> None:
        """Take a place of the shown picture as in the region in progress, or as outside of it."""
        self._no_video()
        self.points.append(self._place(x, y))
        self.labels.append(inside)
        self.corner = None
        if any(self.labels):  # places outside alone say nothing
            self.pointed = self.chat.region_at(points=self.points, labels=self.labels)

    def click_corner(self, x: float, y: float) -> None:
        """Take a place of the shown picture as a corner of a box; the second one makes the region."""
        self._no_video()
        place = self._place(x, y)
        if self.corner is None:
            self.corner = place
            return
        (left, right), (top, bottom) = (sorted(pair) for pair in zip(self.corner, place, strict=True))
        self.clear_points()
        if right - left < 1 or bottom - top < 1:
            raise UserError("a box without an area", do="click on two opposite corners")
        self.pointed = self.chat.region_at(box=(left, top, right, bottom))

    def regions_with(self, layers: Sequence[UInt8]) -> list[Bool]:
        """Return the regions of the next question: the finished ones, what is painted, what is pointed at.

        Raises:
            UserError: too many, or regions of a video.
        """
        pointed = [] if self.pointed is None else [self.pointed]
        found = [*self.regions, *self.paint(layers), *pointed]
        self.check_regions(len(found))
        return found

    def check_regions(self, count: int) -> None:
        """Raise `UserError` where a question cannot have so many new regions."""
        if count > self.limits.regions:
            raise UserError("too many regions", met=str(count), wanted=f"at most {self.limits.regions}")
        if count:
            self._no_video()

    def keep(self, layers: Sequence[UInt8] = ()) -> None:
        """Finish the region in progress: what is painted, what is pointed at."""
        self.regions = self.regions_with(layers)
        self.clear_points()

    def clear_points(self) -> None:
        """Forget the clicks of the region in progress."""
        self.points.clear()
        self.labels.clear()
        self.corner = self.pointed = None

    def clear_regions(self) -> None:
        """Forget all regions of the next question."""
        self.regions.clear()
        self.clear_points()

    def marked(self, regions: Sequence[Bool]) -> UInt8:
        """Return the shown picture with regions of the next question, with their numbers in the conversation."""
        earlier = [np.zeros(self.shown.shape[:2], np.bool_)] * self.chat.regions
        masks = [drawing.shrunk_mask(mask, self.step) for mask in regions]
        return drawing.overlay(self.shown, [*earlier, *masks], numbered=True)

    def pointed_view(self) -> UInt8:
        """Return the shown picture with the regions of the next question, and a dot at each click."""
        corner = [] if self.corner is None else [self.corner]
        places = [(int(x) // self.step, int(y) // self.step) for x, y in [*self.points, *corner]]
        return drawing.dotted(self.marked(self.regions_with(())), places, [*self.labels, *[True for _ in corner]])

    def ask(self, text: str, layers: Sequence[UInt8]) -> None:
        """Take a question, which waits for the model, with the regions that are marked.

        Raises:
            UserError: another question waits or is being answered, or as `checked` and `regions_with`.
        """
        if self.answering or self.waiting is not None:
            raise UserError("the question before is not answered yet", do="wait for its answer, or stop it")
        regions = self.regions_with(layers)
        checked = self.checked(text, len(regions))
        asked = drawing.question_html(checked, drawing.save(self.marked(regions), self.folder) if regions else None)
        self.stopped = False
        self.text = text
        self.waiting = checked, regions, asked

    @contextmanager
    def taken_question(self) -> Iterator[tuple[str, list[Bool], str] | None]:
        """Take the question that waits, None without one; it is being answered as long as the context lasts."""
        self.answering = True  # first: `stop` must find the question in one of the two states
        question, self.waiting = self.waiting, None
        try:
            yield question
        finally:
            self.answering = False

    def stream(self, text: str, regions: Sequence[Bool]) -> Generator[str | Reply, None, None]:
        """Ask a checked question about new regions (H, W); yield the answer so far, last the reply.

        Raises:
            UserError: at once, as `Chat.stream`.
        """
        self.parts = self.chat.stream(text, np.stack(regions) if regions else None)
        return self._until_stopped(self.parts)

    def _until_stopped(self, parts: Generator[str | Reply, None, None]) -> Generator[str | Reply, None, None]:
        try:
            while not (self.stopped or self.closed):
                with self.working:
                    part = next(parts, None)
                if part is None:
                    break
                yield part
        finally:  # also where the page that asked has gone
            self.end_answer()

    def stop(self) -> bool:
        """Let the answer that is generated end after the model's present step; return whether its question waited."""
        waited = self.waiting is not None
        if waited or self.answering:
            self.stopped = True
        self.waiting = None
        return waited

    def end_answer(self) -> None:
        """End what the model generates, if it does."""
        with self.working:
            if self.parts is not None:
                self.parts.close()
            self.parts = None

    def checked(self, text: str, regions: int) -> str:
        """Return the question that is asked: for regions without a question, that for their description.

        Raises:
            UserError: no question, one that is too long, or one too many.
        """
        text = text.strip() or (self._description(regions) if regions else "")
        if not text:
            raise UserError("no question", wanted='words such as "Please segment the dog.", or a marked region')
        if len(text) > self.limits.letters:
            raise UserError(
                "too long a question", met=f"{len(text):,} characters", wanted=f"<= {self.limits.letters:,}"
            )
        if len(self.chat.turns) >= self.limits.turns:
            raise UserError("the conversation is full", met=f"{self.limits.turns} questions", do="begin a new one")
        return text

    def _description(self, regions: int) -> str:
        """Return the question for a description of new regions: that of training for the first ones."""
        if not self.chat.regions:
            return description_question(regions)
        return "Describe " + ", ".join(f"region{self.chat.regions + n}" for n in range(1, regions + 1)) + "."

    def draw(self, reply: Reply) -> Path | None:
        """Write the picture, or of a video the video, with the masks of a reply over it; None without masks.

        The masks of a video are computed here, frame by frame, until the conversation is closed.

        Raises:
            UserError: the video cannot be written.
        """
        numbers = [phrase.numbers for phrase in reply.phrases]
        if self.closed or not any(numbers):
            return None
        if self.frames is None or reply.track is None:
            return drawing.save(drawing.overlay(self.shown, self._shrunk(reply.masks, numbers)), self.folder)
        path = self.folder / f"{uuid4().hex}.mp4"
        try:
            with write_video(path, self.frames.rate) as add:
                for frame, masks in zip(self.frames, reply.track.masks, strict=True):
                    if self.closed:
                        break
                    add(drawing.overlay(drawing.shrunk(frame, self.step), self._shrunk(masks, numbers)))
        except UserError as error:
            if self.closed:  # the folder has gone
                return None
            raise _without_paths(error, self.folder) from None
        return path

    def _shrunk(self, masks: Bool, numbers: Sequence[range]) -> list[Bool]:
        """Return the union of each phrase's masks, at the page's size; `numbers` says which of `masks` are whose."""
        unions = [np.asarray(masks[of.start : of.stop].any(0)) for of in numbers]
        return [drawing.shrunk_mask(union, self.step) for union in unions]

    def close(self) -> None:
        """Remove the files."""
        self.closed = True
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        height, width = self.picture.shape[:2]
        half = (self.step - 1) / 2
        return min(max(x * self.step + half, 0), width - 1), min(max(y * self.step + half, 0), height - 1)

    def _no_video(self) -> None:
        if self.frames is not None:
            raise UserError("regions of a video cannot be marked", do="ask in words, or upload one picture")


class Sessions:
    """The conversations that a server keeps, by the key of the browser session."""

    def __init__(self, predictor: Predictor, limits: Limits, folder: Path, say: Callable[[str], None]) -> None:
        """Keep none yet.

        Args:
            predictor: answers.
            limits: how many are kept, and what they may hold.
            folder: for their files.
            say: tells the person who runs the server that one has ended for another.
        """
        self._predictor = predictor
        self._limits = limits
        self._folder = folder
        self._say = say
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()
        self._working = RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def start(self, key: str, path: Path) -> Session:
        """Begin a conversation about an uploaded picture or video; the earlier one of this key ends.

        Raises:
            UserError: no picture or video, or too large a one.
        """
        folder = self._folder / f"{uuid4().hex}{uuid4().hex}"
        folder.mkdir(mode=0o700)
        try:
            session = self._open(folder, path)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, UserError):
                raise _without_paths(error, folder, path.parent) from None
            raise
        self.end(key)
        with self._lock:
            self._kept[key] = session
            ended = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - self._limits.sessions)]
        for one in ended:
            one.close()
            self._say(f"a conversation of {len(one.chat.turns)} questions has ended: {self._limits.sessions} are kept")
        return session

    def get(self, key: str) -> Session:
        """Return the conversation of this key.

        Raises:
            UserError: there is none, or it has ended.
        """
        with self._lock:
            if key not in self._kept:
                do = f"upload a picture or a video; the server keeps {self._limits.sessions} conversations at a time"
                raise UserError("no conversation, or it has ended", do=do)
            self._kept.move_to_end(key)
            return self._kept[key]

    def end(self, key: str) -> None:
        """End the conversation of this key, if there is one."""
        with self._lock:
            session = self._kept.pop(key, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """End all, and wait for the model's last step: a process must not end within it."""
        for session in [*self._kept.values()]:
            session.closed = True
            session.end_answer()
        for key in [*self._kept]:
            self.end(key)

    def _open(self, folder: Path, path: Path) -> Session:
        if path.stat().st_size > self._limits.upload:
            raise UserError("too large a file")
        if path.suffix.lower() not in VIDEOS:
            picture = read_picture(path)
            return Session(self._predictor.chat(picture), self._limits, folder, picture, None, working=self._working)
        video = folder / f"video{path.suffix.lower()}"
        os.link(path, video)  # the upload may be removed
        frames = Frames(video)
        if len(frames) > self._limits.frames:
            raise UserError("too long a video", met=f"{len(frames):,} frames", wanted=f"<= {self._limits.frames:,}")
        chat = self._predictor.chat(frames, name="video")
        return Session(chat, self._limits, folder, frames[0], frames, working=self._working)


def _without_paths(error: UserError, *folders: Path) -> UserError:
    """Return an error that tells a visitor nothing about the server's folders."""
    met = error.met
    for folder in folders:
        met = met.replace(f"{folder}/", "")
    return UserError(error.what, met=met, wanted=error.wanted, do=error.do)
