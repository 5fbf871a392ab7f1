"""A conversation with a Sa2VA model about a picture or a video: earlier turns are kept, answers can be streamed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from inference import following, prompted, tiles
from inference.following import SeenFrame
from inference.phrases import without_marks
from inference.predictor import Predictor, Track, checked_picture
from inference.regions import region_cells
from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards.errors import UserError
from trainer.model.generation import Answers, generate_steps, likeliest
from trainer.model.grounding import SamFeatures
from trainer.model.prompts import IMAGE, Prompts
from trainer.model.rows import TokenRow


@dataclass(frozen=True)
class Phrase:
    """A phrase of a reply with the masks that it names, or a `[SEG]` without a phrase."""

    text: str
    """The text between `<p>` and `</p>`; "" for a `[SEG]` without a phrase."""
    masks: Bool
    """(k, H, W), one for each of its `[SEG]`s; (0, H, W) for a phrase without one. Of a video (0, 0, 0): see
    `numbers`."""
    start: int
    """`reply.plain[start:end]` is `text`."""
    end: int
    numbers: range
    """Numbers of its masks in the reply (in `Reply.masks`, or among the objects of `Reply.track`), from 0."""


@dataclass(frozen=True)
class Reply:
    """Answer to one question of a conversation."""

    text: str
    """The answer as generated, with the marks `<p>`, `</p>` and `[SEG]`, without its end mark."""
    plain: str
    """The answer without marks, for people."""
    masks: Bool
    """(n, H, W), one for each `[SEG]`, in order. Of a video (0, 0, 0): see `track`."""
    phrases: tuple[Phrase, ...]
    """In order; each mask belongs to exactly one."""
    track: Track | None
    """The masks of each frame of a video, computed when they are iterated, once; None of a picture."""
    tokens: int
    """Number of tokens in front of the answer: the picture, earlier turns and the question."""
    reused: int
    """Number of these whose keys and values were kept from earlier turns; the others were read."""


class Chat:
    """A conversation about one picture or one video. Made by `Predictor.chat`.

    The vision tower and SAM 2 encode a picture once. Keys and values of the language model are kept between turns, as
    long as this object lives.

    Earlier turns stand in front of a question as in training: question, answer with its end mark, line break. The
    official `predict_forward(past_text=...)` makes the same tokens of them. Regions are numbered through the
    conversation. The sentence that shows them stands in the first question, as in training, so a question with new
    regions has the turns read again.
    """

    def __init__(self, predictor: Predictor, picture: UInt8 | Sequence[UInt8], name: str = "picture") -> None:
        """Begin a conversation; see `Predictor.chat`."""
        self.turns: list[tuple[str, Reply]] = []
        """Questions, as they were asked, and replies. A turn that was stopped is not among them."""
        self._predictor = predictor
        self._prompts: Prompts = predictor.model.prompts
        self._name = name
        self._picture: UInt8 | None = None
        self._frames: Sequence[UInt8] = ()
        if isinstance(picture, np.ndarray) and picture.ndim != 4:
            self._picture = checked_picture(picture, name)
        elif len(picture):
            self._frames = [*picture] if isinstance(picture, np.ndarray) else picture
        else:
            raise UserError("no frames", where=name)
        self._cells = np.zeros((0, 16, 16), np.bool_)
        self._visual_tokens: Tensor | None = None
        self._seen: dict[int, SeenFrame] = {}
        self._sam_features: tuple[SamFeatures, SamFeatures] | None = None
        self._cache: DynamicCache | None = None
        self._read: list[int] = []
        """Tokens whose keys and values are in the cache."""
        self._running: Generator[str | Reply, None, None] | None = None

    @property
    def regions(self) -> int:
        """Number of regions that were shown; the next one is called region{regions + 1}."""
        return len(self._cells)

    @property
    def context(self) -> int:
        """Most tokens of a conversation, answers included."""
        return int(self._predictor.model.language_model.config.max_position_embeddings)

    def ask(self, text: str, regions: Bool | None = None) -> Reply:
        """Ask a question, and return the answer. Arguments and errors as in `stream`."""
        replies = [part for part in self.stream(text, regions) if isinstance(part, Reply)]
        return replies[0]

    def stream(self, text: str, regions: Bool | None = None) -> Generator[str | Reply, None, None]:
        """Ask a question, and yield the answer as it grows.

        Closing the iterator stops the generation; the turn is then not kept. So does the next question.

        Args:
            text: the question. The picture goes in front of the first one, or in place of its `<image>`.
            regions: (R, H, W) bool, new regions of the picture, which texts call region1, region2, ..., numbered on
                from those of earlier turns.

        Yields:
            The text so far, with marks, each time the start of the next; then the `Reply`.

        Raises:
            UserError: an empty question, `<image>` in a later turn, regions that do not fit, or a conversation that is
                longer than the language model's context. Raised at once, before anything is iterated.
        """
        if self._running is not None:
            self._running.close()
        cells = self._cells
        if regions is not None:
            if self._picture is None:
                raise UserError("regions belong to a picture", where=self._name, met="a video")
            new = region_cells(self._picture, regions, self._predictor.recipe, self._name)
            cells = np.concatenate([cells, new])
        row = self._row(text, cells)
        self._running = self._answer(text, row, cells)
        return self._running

    def region_at(
        self,
        *,
        box: prompted.Box | None = None,
        points: Sequence[prompted.Point] = (),
        labels: Sequence[bool] = (),
    ) -> Bool:
        """Return the region (H, W) of the picture that a box or clicks mean, see `inference.prompted.region_at`.

        SAM 2 encodes the picture once for all masks and regions of the conversation.
        """
        if self._picture is None:
            raise UserError("boxes and clicks belong to a picture", where=self._name, met="a video")
        height, width = self._picture.shape[:2]
        prompt = prompted.Prompt(box, points, labels).checked(height, width, self._name)
        return prompted.decode_region(self._predictor, self._encode_sam()[1], prompt, height, width)

    def _row(self, text: str, cells: Bool) -> TokenRow:
        """Build the row of the conversation with one more question."""
        if not text.replace(IMAGE, "").strip():
            raise UserError("an empty question", where=self._name)
        count = len(self._views())
        row = self._prompts.ask(
            self._name,
            text,
            tiles=1 if self._picture is None else count,
            frames=count if self._picture is None else 1,
            cells=cells.sum((1, 2)).tolist(),
            earlier=[(question, reply.text) for question, reply in self.turns],
        )
        if len(row.ids) >= self.context:
            raise UserError(
                "the conversation is longer than the language model's context",
                where=self._name,
                met=f"{len(row.ids):,} tokens in {len(self.turns) + 1} questions and their answers",
                wanted=f"less than {self.context:,}",
                do="begin a new conversation",
            )
        return row

    @torch.no_grad()
    def _views(self) -> Tensor:
        """Return the visual tokens (B, 256, 4C) of the tiles or frames, computed once."""
        if self._visual_tokens is None:
            predictor = self._predictor
            if self._picture is not None:
                views = tiles.views(self._picture, predictor.most_tiles, predictor.recipe)
            else:
                views, self._seen = following.read_seen(predictor, self._frame, len(self._frames))
            with predictor.precision():
                self._visual_tokens = predictor.encode_views(views)
        return self._visual_tokens

    def _frame(self, number: int) -> UInt8:
        """Return a frame of the video."""
        return checked_picture(self._frames[number], self._name)

    @torch.no_grad()
    def _encode_sam(self) -> tuple[SamFeatures, SamFeatures]:
        """Return the picture's features for the mask decoder of answers and for that of clicks, computed once."""
        if self._sam_features is None:
            assert self._picture is not None
            predictor = self._predictor
            encoder = predictor.model.grounding_encoder
            with predictor.precision():
                maps = predictor.sam_maps(resize.picture(self._picture, predictor.recipe.sam_size, predictor.recipe))
                trained = encoder.features_for(encoder.sam2_model.sam_mask_decoder, maps)
                original = prompted.uses_original_decoder(predictor)
                self._sam_features = trained, prompted.features_for_clicks(predictor, maps) if original else trained
        return self._sam_features

    def _answer(self, text: str, row: TokenRow, cells: Bool) -> Generator[str | Reply, None, None]:
        """Generate the answer to the last question of `row`, and keep the turn."""
        predictor = self._predictor
        cache, reused = self._take_cache(row.ids)
        # Autocast and no_grad are entered for each step: around a `yield` they would apply to the caller's code.
        with torch.no_grad(), predictor.precision():
            steps = self._steps(row, cells, cache, reused)
        ids: list[int] = []
        shown = ""
        answers: Answers | None = None
        try:
            while answers is None:
                with torch.no_grad(), predictor.precision():
                    try:
                        ids.append(int(next(steps)[0]))
                    except StopIteration as end:
                        answers = end.value
                grown = text_so_far(self._prompts, ids)
                if answers is None and len(grown) > len(shown) and grown.startswith(shown):
                    shown = grown
                    yield shown
        except GeneratorExit:
            steps.close()
            # Other regions of the same sizes would have the same tokens.
            self._keep(cache, row.ids[: reused if len(cells) > len(self._cells) else cache.get_seq_length()])
            raise
        self._keep(cache, (row.ids + ids)[: cache.get_seq_length()])
        assert answers is not None
        reply = self._reply(answers, len(row.ids), reused)
        self._cells = cells
        self.turns.append((text, reply))
        yield reply

    def _steps(self, row: TokenRow, cells: Bool, cache: DynamicCache, reused: int) -> Generator[Tensor, None, Answers]:
        """Begin to generate with the likeliest tokens, after `reused` tokens of the row that the cache holds."""
        model = self._predictor.model
        rows = self._prompts.padded([row], model.device)
        views = self._views()
        images = torch.arange(len(views), device=model.device)[None]
        regions = torch.from_numpy(cells)[None].to(model.device)
        embeddings = model.embed_rows(rows, views, images, regions)[:, reused:]
        unread = replace(rows, attention=rows.mask[:, reused:])
        most = min(self._predictor.max_new_tokens, self.context - len(row.ids))
        return generate_steps(
            model, unread, embeddings, most, likeliest, self._prompts.ended, keep_seg=True, cache=cache
        )

    def _take_cache(self, ids: Sequence[int]) -> tuple[DynamicCache, int]:
        """Return the cache of the tokens that `ids` begins with, and their number.

        At least the last token is left to read.
        """
        cache = self._cache
        self._cache = None  # until the answer is complete
        shared = _common_start(self._read, ids[:-1])
        if cache is not None and _cropped(cache, shared):
            return cache, shared
        return DynamicCache(config=self._predictor.model.language_model.config), 0

    def _keep(self, cache: DynamicCache, read: list[int]) -> None:
        """Keep a cache for the next turn, with the keys and values of the tokens `read`."""
        self._read = read
        self._cache = cache if _cropped(cache, len(read)) else None

    @torch.no_grad()
    def _reply(self, answers: Answers, tokens: int, reused: int) -> Reply:
        predictor = self._predictor
        text = self._prompts.answer(answers.tokens()[0])
        states = answers.seg_states
        track = None
        masks = np.empty((0, 0, 0), np.bool_)
        with predictor.precision():
            if self._picture is None:
                embeddings = predictor.model.text_hidden_fcs(states)
                follow = following.follow(predictor, self._frame, len(self._frames), self._seen, embeddings)
                track = Track(text, len(embeddings), follow)
            else:
                height, width = self._picture.shape[:2]
                masks = np.empty((0, height, width), np.bool_)
                if len(states):
                    masks = predictor.decode_masks(self._encode_sam()[0], states, height, width)
        plain, spans = without_marks(text)
        phrases = [
            Phrase(plain[s.start : s.end], masks[s.masks.start : s.masks.stop], s.start, s.end, s.masks) for s in spans
        ]
        return Reply(text, plain, masks, tuple(phrases), track, tokens, reused)


def text_so_far(prompts: Prompts, ids: Sequence[int]) -> str:
    """Return the text of the first tokens of an answer, as far as no later token can change it.

    Held back are the bytes of a character that is not complete (in tokenizers that decode runs of bytes together, the
    whole run), the start of an end mark that is written in letters, and blanks at the end.
    """
    text = prompts.decode(ids[:-1] if ids and ids[-1] in prompts.end_tokens else ids)
    text = text.rstrip("\N{REPLACEMENT CHARACTER}").strip()
    held = [n for mark in prompts.end_texts for n in range(1, len(mark) + 1) if text.endswith(mark[:n])]
    return text[: len(text) - max(held, default=0)].strip()


def _common_start(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many items two sequences have in common at their start."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(some), len(others)))


def _cropped(cache: DynamicCache, length: int) -> bool:
    """Shorten a cache to `length` tokens; return False where it cannot be: a sliding window forgets."""
    beyond = int(cache.get_seq_length()) - length
    if beyond > 0:
        if any(cache.is_sliding):
            return False
        cache.crop(-beyond)
    return beyond >= 0
