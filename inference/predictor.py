"""Prediction with a Sa2VA model: `segment` pictures, `describe` regions, `track` objects through a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inference import following, tiles
from inference.loading import DTYPES
from inference.recipes import recipe_of
from inference.regions import region_cells
from inference.tracking import PROPAGATE, VIDEO_FRAMES
from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards import codec
from shards.errors import BadInput, UserError
from shards.recipe import Recipe, named_recipe
from trainer.model.generation import Answers, generate, likeliest
from trainer.model.grounding import SamFeatures
from trainer.model.prompts import description_question
from trainer.model.rows import TokenRow
from trainer.released.loaded import LoadedModel
from trainer.released.training import VIDEO_FRAMES_KEY, VIDEO_FRAMES_NUMBER_KEY

if TYPE_CHECKING:
    from inference.chat import Chat

MOST_FRAMES = 99
"""Most frames of a video that a language model can be said to see."""
_AT_ONCE = 16
"""Batch size of the vision tower (pictures) and of the mask decoder (objects)."""


@dataclass(frozen=True)
class Answer:
    """Answer to a question about a picture of height H and width W."""

    text: str
    masks: Bool
    """(n, H, W), one for each `[SEG]` of the text, in order."""


@dataclass(frozen=True)
class Track:
    """Answer to a question about a video."""

    text: str
    objects: int
    """Number n of objects: one for each `[SEG]` of the text."""
    masks: Iterator[Bool]
    """(n, H, W) for each frame, at the frame's size; computed when it is iterated."""


@dataclass(frozen=True)
class Tracks:
    """Answers to questions about a video whose objects are followed together."""

    questions: range
    """Numbers of the questions, from 0."""
    texts: tuple[str, ...]
    """The answer to each."""
    objects: tuple[int, ...]
    """Number of objects of each that are followed."""
    masks: Iterator[list[Bool]]
    """For each frame a list: of each question (n, H, W) at the frame's size. Computed when it is iterated, once."""


class Predictor:
    """Answers questions about pictures with one model, on the device and in the dtype of its weights.

    Pictures are (H, W, 3) uint8 arrays, RGB, of any size.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        recipe: str | Recipe | None = None,
        most_tiles: int = 1,
        max_new_tokens: int = 2048,
        official_normalisation: bool = False,
        memory_dtype: str = "bfloat16",
        video_frames: str | None = None,
        propagate: str | None = None,
    ) -> None:
        """Put the model into evaluation mode, and its SAM 2 into float32.

        Args:
            loaded: a model from `inference.loading.load`. With bfloat16 weights it runs under autocast, SAM 2 with
                float32 weights: it mixes dtypes in ways that a CPU's layer norm accepts only so.
            recipe: how pictures become tensors; None: as in the model's training (see `inference.recipes.recipe_of`).
            most_tiles: most tiles per picture. 1 shows the model the whole picture at 448 x 448, as shards do. 12,
                each 448 x 448, and a thumbnail are the official inference.
            max_new_tokens: most tokens of an answer.
            official_normalisation: round SAM 2's mean and standard deviation to bfloat16, as the official inference
                does.
            memory_dtype: dtype of SAM 2's memory of a video: "bfloat16", as in the official inference, or "float32".
            video_frames: frames of a video that the language model sees: the "first", or "uniform"ly spread ones; None:
                as `video_frames` in the model's `config.json` says, "uniform" where it says nothing. How many,
                `video_frames_number` there says; else 5.
            propagate: how objects are followed through a video. "tuned": the mask decoder that Sa2VA trained makes the
                masks of all frames, with SAM 2's memory. "sam2": it makes those of the frames that the language model
                sees, each by itself; with them as prompts, SAM 2 with the decoder that it was released with makes the
                others. None: "sam2" where the model has this second decoder, else "tuned".
        """
        if memory_dtype not in DTYPES:
            raise UserError("unknown dtype of memories", met=memory_dtype, wanted=" or ".join(DTYPES))
        if not 1 <= most_tiles <= tiles.MOST_TILES:
            raise UserError("number of tiles", met=str(most_tiles), wanted=f"1 to {tiles.MOST_TILES}")
        config = loaded.model.architecture.config
        self.video_frames = video_frames or config.get(VIDEO_FRAMES_KEY, "uniform")
        if self.video_frames not in VIDEO_FRAMES:
            where = VIDEO_FRAMES_KEY if video_frames is None else ""
            met = repr(self.video_frames)
            raise UserError("unknown frames of a video", where=where, met=met, wanted=" or ".join(VIDEO_FRAMES))
        self.frames_seen = config.get(VIDEO_FRAMES_NUMBER_KEY)
        """Number of frames of a video that the language model sees; None: 5."""
        if self.frames_seen is not None and not (
            type(self.frames_seen) is int and 1 <= self.frames_seen <= MOST_FRAMES
        ):
            met = repr(self.frames_seen)
            raise UserError("frames of a video", where=VIDEO_FRAMES_NUMBER_KEY, met=met, wanted=f"1 to {MOST_FRAMES}")
        has_original = loaded.model.grounding_encoder.original_mask_decoder is not None
        self.propagate = propagate or ("sam2" if has_original else "tuned")
        if self.propagate not in PROPAGATE:
            raise UserError("unknown propagation", met=self.propagate, wanted=" or ".join(PROPAGATE))
        if self.propagate == "sam2" and not has_original:
            raise UserError(
                "the model has no mask decoder of SAM 2's own",
                where="--propagate sam2",
                wanted="sam_mask_decoder_modified beside sam_mask_decoder, as in the folders of Sa2VA-i",
                do="give SAM 2's checkpoint (.pt) that the model was made of with --sam2",
            )
        self.autocast = loaded.model.embedding.weight.dtype == torch.bfloat16
        """Whether the model computes under autocast to bfloat16."""
        self.model = loaded.model.eval()
        sam = self.model.grounding_encoder
        if any(t.is_floating_point() and t.dtype != torch.float32 for t in (*sam.parameters(), *sam.buffers())):
            sam.float()  # not where nothing changes: it would shard the parameters of a training (FSDP) again
        self.recipe = (named_recipe(recipe) if isinstance(recipe, str) else recipe) or recipe_of(loaded)
        self.memory_dtype = DTYPES[memory_dtype]
        self.most_tiles = most_tiles
        self.max_new_tokens = max_new_tokens
        self.official_normalisation = official_normalisation

    @torch.no_grad()
    def segment(
        self,
        pictures: Sequence[UInt8],
        texts: Sequence[str],
        names: Sequence[str] | None = None,
        regions: Sequence[Bool | None] | None = None,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer one question about each picture, with a mask for each `[SEG]` of the answer.

        Args:
            pictures: M pictures. An array that occurs several times is encoded once.
            texts: M questions such as "Please segment the dog." The picture goes in front, or in place of `<image>`.
            names: names of the pictures, for messages.
            regions: for each picture None or (R, H, W) bool, regions that its text calls region1, region2, ...
            batch_size: questions that are answered at once, those of like length together; None: all.

        Raises:
            UserError: an invalid picture, text or region; it names the picture.
        """
        with self.precision():
            optional = [None] * len(pictures) if regions is None else regions
            generated = self._ask(pictures, texts, optional, _names(pictures, names), batch_size)
            sam_features: dict[int, SamFeatures] = {}
            answers = []
            for picture, (ids, states) in zip(pictures, generated, strict=True):
                height, width = picture.shape[:2]
                masks = np.empty((0, height, width), np.bool_)
                if len(states):
                    if id(picture) not in sam_features:
                        sam_features[id(picture)] = self._encode_sam(picture)
                    masks = self.decode_masks(sam_features[id(picture)], states, height, width)
                answers.append(Answer(self.model.prompts.answer(ids), masks))
        return answers

    def decode_masks(self, sam_features: SamFeatures, states: Tensor, height: int, width: int) -> Bool:
        """Decode the masks of a picture: (n, height, width).

        Args:
            sam_features: of the picture, B = 1.
            states: (n, D), the language model's at `[SEG]`s, one or more.
        """
        masks = []
        for part in self.model.text_hidden_fcs(states).split(_AT_ONCE):
            first = torch.zeros(len(part), dtype=torch.int64, device=part.device)
            logits = self.model.grounding_encoder.decode(sam_features, first, part)
            masks.append(resize.predicted_masks(logits, height, width, self.recipe))
        return np.concatenate(masks)

    def chat(self, picture: UInt8 | Sequence[UInt8], name: str = "picture") -> Chat:
        """Begin a conversation about a picture (H, W, 3), or about the frames of a video.

        Raises:
            UserError: no picture, or no frames.
        """
        from inference.chat import Chat  # which needs this module

        return Chat(self, picture, name)

    @torch.no_grad()
    def describe(
        self,
        pictures: Sequence[UInt8],
        regions: Sequence[Bool],
        texts: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Describe regions: one question about each picture and its regions.

        Args:
            pictures: M pictures.
            regions: for each picture (R, H, W) bool, one or more regions at its size.
            texts: M questions, which call the regions region1, region2, ...; None asks the question of training.
            names: names of the pictures, for messages.
            batch_size: questions that are answered at once, those of like length together; None: all.

        Raises:
            UserError: a region of another size than its picture, or too small for a single cell of the 16 x 16 grid.
        """
        questions = [description_question(len(r)) for r in regions] if texts is None else texts
        with self.precision():
            answers = self._ask(pictures, questions, regions, _names(pictures, names), batch_size)
        return [self.model.prompts.answer(ids) for ids, _ in answers]

    def track(self, frames: Sequence[UInt8], text: str, name: str = "video") -> Track:
        """Answer a question about a video and follow each `[SEG]` of the answer through all of its frames.

        The language model sees some frames (see `video_frames` of the class), and its objects are prompted in each of
        them; SAM 2's memory follows them through the others (see `propagate`). One pass of SAM 2's image encoder per
        frame serves all objects.

        Args:
            frames: one or more, in order. Each is read when it is needed, so they need not all be in memory.
            text: the question. The frames go in front, or in place of `<image>`.
            name: name of the video, for messages.

        Raises:
            UserError: no frames, or a frame that is no picture.
        """
        (tracks,) = self.track_many(frames, [text], name)
        return Track(tracks.texts[0], tracks.objects[0], (masks[0] for masks in tracks.masks))

    @torch.no_grad()
    def track_many(
        self,
        frames: Sequence[UInt8],
        texts: Sequence[str],
        name: str = "video",
        batch_size: int | None = None,
        first_only: bool = False,
    ) -> list[Tracks]:
        """Answer several questions about a video, and follow the `[SEG]`s of all answers together.

        The results are those of `track` for each question. The vision tower sees a frame once for all questions, and
        SAM 2's image encoder once for all that are followed together: as many questions, in their order, as have 64
        objects or fewer. So memory grows neither with the number of questions nor with that of frames.

        Args:
            frames: as in `track`.
            texts: one question or more, as in `track`.
            name: name of the video, for messages.
            batch_size: questions that are answered at once, those of like length together; None: all.
            first_only: follow only the first `[SEG]` of each answer.

        Returns:
            Groups of questions. Iterating the masks of one reads the video.
        """
        if not len(frames):
            raise UserError("no frames", where=name)

        def read(i: int) -> UInt8:
            return checked_picture(frames[i], name)

        with self.precision():
            views, seen = following.read_seen(self, read, len(frames))
            rows = [self.model.prompts.ask(name, text, frames=len(views)) for text in texts]
            views_of_row = [list(range(len(views)))] * len(rows)
            generated = self._answer_rows(rows, self.encode_views(views), views_of_row, None, batch_size)
            kept = [states[:1] if first_only else states for _, states in generated]
            embeddings = [self.model.text_hidden_fcs(states) for states in kept]
        answers = [self.model.prompts.answer(ids) for ids, _ in generated]
        groups = []
        for questions in following.groups_of([*map(len, embeddings)], following.MOST_OBJECTS):
            of_group = [embeddings[n] for n in questions]
            ends = np.cumsum([*map(len, of_group)])[:-1]
            masks = following.follow(self, read, len(frames), seen, torch.cat(of_group))
            split = (np.split(of_frame, ends) for of_frame in masks)
            texts_of_group = tuple(answers[n] for n in questions)
            groups.append(Tracks(questions, texts_of_group, tuple(map(len, of_group)), split))
        return groups

    def sam_maps(self, pixels: UInt8) -> list[Tensor]:
        """Run SAM 2's image encoder on one picture (3, 1024, 1024)."""
        values = torch.from_numpy(pixels)[None].to(self.model.device)
        return self.model.grounding_encoder.encode_maps(values, self.official_normalisation)

    def precision(self) -> torch.autocast:
        """Return the context in which the model computes: with or without `autocast`."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast)

    def _encode_sam(self, picture: UInt8) -> SamFeatures:
        pixels = torch.from_numpy(resize.picture(picture, self.recipe.sam_size, self.recipe))[None]
        return self.model.grounding_encoder.encode(pixels.to(self.model.device), self.official_normalisation)

    def _ask(
        self,
        pictures: Sequence[UInt8],
        texts: Sequence[str],
        regions: Sequence[Bool | None],
        names: Sequence[str],
        batch_size: int | None = None,
    ) -> list[tuple[list[int], Tensor]]:
        """Ask one question about each picture, with optional regions; an array that occurs twice is encoded once.

        Returns:
            Tokens of each answer, and the states (n, D) at its `[SEG]`s.
        """
        views: list[UInt8] = []
        views_of_picture: dict[int, list[int]] = {}
        rows = []
        cells = []
        for picture, text, masks, name in zip(pictures, texts, regions, names, strict=True):
            if id(picture) not in views_of_picture:
                tiled = tiles.views(checked_picture(picture, name), self.most_tiles, self.recipe)
                views_of_picture[id(picture)] = list(range(len(views), len(views) + len(tiled)))
                views += [*tiled]
            grids = np.zeros((0, 16, 16), np.bool_)
            if masks is not None:
                grids = region_cells(picture, masks, self.recipe, name)
            cells.append(grids)
            counts = grids.sum((1, 2)).tolist()
            rows.append(self.model.prompts.ask(name, text, tiles=len(views_of_picture[id(picture)]), cells=counts))
        most = max(map(len, cells))
        padded = np.stack([np.pad(grids, ((0, most - len(grids)), (0, 0), (0, 0))) for grids in cells])
        views_of_row = [views_of_picture[id(picture)] for picture in pictures]
        visual_tokens = self.encode_views(np.stack(views))
        return self._answer_rows(rows, visual_tokens, views_of_row, torch.from_numpy(padded), batch_size)

    def _answer_rows(
        self,
        rows: Sequence[TokenRow],
        visual_tokens: Tensor,
        views_of_row: Sequence[Sequence[int]],
        regions: Tensor | None,
        batch_size: int | None,
    ) -> list[tuple[list[int], Tensor]]:
        """Answer rows in batches of like length; arguments as in `_generate`.

        Returns:
            Tokens of each answer, and the states (n, D) at its `[SEG]`s.
        """
        order = range(len(rows)) if batch_size is None else sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        found: dict[int, tuple[list[int], Tensor]] = {}
        for start in range(0, len(rows), batch_size or len(rows)):
            batch = [*order[start : start + (batch_size or len(rows))]]
            of_rows = [views_of_row[i] for i in batch]
            of_batch = None if regions is None else regions[batch]
            generated = self._generate([rows[i] for i in batch], visual_tokens, of_rows, of_batch)
            for n, (i, ids) in enumerate(zip(batch, generated.tokens(), strict=True)):
                found[i] = ids, generated.seg_states[generated.row_of_seg == n]
        return [found[i] for i in range(len(rows))]

    def encode_views(self, views: UInt8) -> Tensor:
        """Return the visual tokens (B, 256, 4C) of views (B, 3, 448, 448) uint8."""
        parts = torch.from_numpy(views).split(_AT_ONCE)
        return torch.cat([self.model.encode_image(self._normalise(part)) for part in parts])

    def _generate(
        self,
        rows: Sequence[TokenRow],
        visual_tokens: Tensor,
        views_of_row: Sequence[Sequence[int]],
        regions: Tensor | None,
    ) -> Answers:
        """Generate answers, always with the likeliest token.

        Args:
            rows: M questions.
            visual_tokens: (B, 256, 4C), of all views.
            views_of_row: indices into `visual_tokens` for each row.
            regions: (M, R, 16, 16) bool.
        """
        model = self.model
        most = max(map(len, views_of_row))
        images = torch.tensor([[*row, *[-1] * (most - len(row))] for row in views_of_row], device=model.device)
        padded = model.prompts.padded(rows, model.device, left=True)
        embeddings = model.embed_rows(
            padded, visual_tokens, images, None if regions is None else regions.to(model.device)
        )
        return generate(model, padded, embeddings, self.max_new_tokens, likeliest, model.prompts.ended, keep_seg=True)

    def _normalise(self, pictures: Tensor) -> Tensor:
        values = [codec.normalise(picture.numpy(), self.recipe.mean, self.recipe.std) for picture in pictures]
        return torch.from_numpy(np.stack(values)).to(self.model.device)


def _names(pictures: Sequence[UInt8], names: Sequence[str] | None) -> Sequence[str]:
    return [f"picture {i}" for i in range(1, len(pictures) + 1)] if names is None else names


def checked_picture(picture: UInt8, name: str) -> UInt8:
    """Return the picture, if it is (H, W, 3) uint8; else raise `BadInput`, which names it."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BadInput("no picture", where=name, met=f"{picture.dtype} {picture.shape}", wanted="uint8 (H, W, 3)")
    return picture
