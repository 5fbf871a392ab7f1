"""A Sa2VA model that answers: `segment` pictures, `describe` regions, `track` objects through a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference import tiles
from inference.loading import DTYPES
from inference.recipes import recipe_of
from inference.regions import cells_of
from inference.tracking import Tracker
from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards import codec
from shards.errors import BadInput, UserError
from shards.recipe import Recipe, named_recipe
from trainer.model.generation import Answers, generate
from trainer.model.grounding import SamFeatures
from trainer.model.prompts import Row, description_question
from trainer.released.loaded import LoadedModel

PROMPTED_FRAMES = 5
"""Of a video: those that the language model sees and that are prompted in SAM 2, as in the official inference."""
_AT_ONCE = 16
"""Pictures in the vision tower, or objects in the mask decoder, at a time."""


@dataclass(frozen=True)
class Answer:
    """What the model says of a picture of height H and width W."""

    text: str
    masks: Bool
    """(n, H, W), one for each `[SEG]` of the text, in its order."""


@dataclass(frozen=True)
class Track:
    """What the model says of a video."""

    text: str
    objects: int
    """n, as many as the text has `[SEG]`."""
    masks: Iterator[Bool]
    """For each frame, when its turn comes, (n, H, W) at that frame's size."""


class Predictor:
    """Answers questions about pictures with one model, on the device and in the precision of its weights.

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
    ) -> None:
        """Put the model into evaluation mode, and its SAM 2 into float32.

        Args:
            loaded: what `inference.loading.load` returns. Where its weights are bfloat16 it runs under autocast, SAM 2
                with float32 weights: it mixes precisions in ways that a CPU's layer norm does not take otherwise.
            recipe: how pictures become tensors; None: as in the model's training (see `inference.recipes.recipe_of`).
            most_tiles: 1 shows the model the whole picture at 448 x 448, as shards do. Up to 12 tiles at 448 x 448
                and a thumbnail are the official inference.
            max_new_tokens: of an answer.
            official_normalisation: round SAM 2's mean and standard deviation to bfloat16, as the official inference
                does.
            memory_dtype: "bfloat16", in which the official inference keeps what it remembers of a video's frames, or
                "float32", which does not round it.
        """
        if memory_dtype not in DTYPES:
            raise UserError("unknown dtype of memories", met=memory_dtype, wanted=" or ".join(DTYPES))
        if not 1 <= most_tiles <= tiles.MOST_TILES:
            raise UserError("number of tiles", met=str(most_tiles), wanted=f"1 to {tiles.MOST_TILES}")
        self.model = loaded.model.eval()
        self.model.grounding_encoder.float()
        asked = named_recipe(recipe) if isinstance(recipe, str) else recipe
        self.recipe = asked or recipe_of(loaded)
        self.memory_dtype = DTYPES[memory_dtype]
        self.most_tiles, self.max_new_tokens, self.rounded = most_tiles, max_new_tokens, official_normalisation

    @torch.no_grad()
    def segment(
        self,
        pictures: Sequence[UInt8],
        texts: Sequence[str],
        names: Sequence[str] | None = None,
        regions: Sequence[Bool | None] | None = None,
    ) -> list[Answer]:
        """Answer one question about each picture, all in one batch, with a mask for each `[SEG]` of the answer.

        Args:
            pictures: M of them. An array that stands here several times is sam_features at once.
            texts: M questions such as "Please segment the dog." The picture goes in front, or where it says `<image>`.
            names: of the pictures, for messages.
            regions: for each picture None or (R, H, W) bool, regions that its text calls region1, region2, ...

        Raises:
            UserError: a picture, a text or a region that cannot be asked about; it names the picture.
        """
        with self._precision():
            given = [None] * len(pictures) if regions is None else regions
            answers = self._ask(pictures, texts, given, _names(pictures, names))
            sam_features: dict[int, SamFeatures] = {}
            found = []
            for i, (picture, ids) in enumerate(zip(pictures, answers.tokens(), strict=True)):
                height, width = picture.shape[:2]
                masks = [np.empty((0, height, width), np.bool_)]
                states = answers.seg_states[answers.row_of_seg == i]
                if len(states) and id(picture) not in sam_features:
                    sam_features[id(picture)] = self._look(picture)
                for part in self.model.text_hidden_fcs(states).split(_AT_ONCE):
                    where = torch.zeros(len(part), dtype=torch.int64, device=part.device)
                    if len(part):
                        logits = self.model.grounding_encoder.decode(sam_features[id(picture)], where, part)
                        masks.append(resize.predicted_masks(logits, height, width, self.recipe))
                found.append(Answer(self.model.prompts.answer(ids), np.concatenate(masks)))
        return found

    @torch.no_grad()
    def describe(
        self,
        pictures: Sequence[UInt8],
        regions: Sequence[Bool],
        texts: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[str]:
        """Describe regions: one question about each picture and its regions, all in one batch.

        Args:
            pictures: M of them.
            regions: for each picture (R, H, W) bool, one or more regions at its size.
            texts: M questions, which call the regions region1, region2, ...; the training's own where None.
            names: of the pictures, for messages.

        Raises:
            UserError: a region of another size than its picture, or too small for a single cell of the 16 x 16 grid.
        """
        asked = [description_question(len(r)) for r in regions] if texts is None else texts
        with self._precision():
            answers = self._ask(pictures, asked, regions, _names(pictures, names))
        return [self.model.prompts.answer(ids) for ids in answers.tokens()]

    def track(self, frames: Sequence[UInt8], text: str, name: str = "video") -> Track:
        """Answer a question about a video and follow each `[SEG]` of the answer through all of its frames.

        The language model sees the first 5 frames, and what it finds is prompted in each of them; SAM 2's memory
        follows it through the others.

        Args:
            frames: one or more, in order. Each is taken when its turn comes, so they need not all be in memory.
            text: the question. The frames stand in front, or where it says `<image>`.
            name: of the video, for messages.

        Raises:
            UserError: no frame, or one that is no picture.
        """
        if not len(frames):
            raise UserError("no frames", where=name)
        with torch.no_grad(), self._precision():
            first = [frames[i] for i in range(min(PROMPTED_FRAMES, len(frames)))]
            shown = [resize.picture(_checked(frame, name), self.recipe.vision_size, self.recipe) for frame in first]
            row = self.model.prompts.ask(name, text, frames=len(shown))
            answers = self._answer([row], np.stack(shown), [list(range(len(shown)))], None)
            embeddings = self.model.text_hidden_fcs(answers.seg_states)
        answer = self.model.prompts.answer(answers.tokens()[0])
        return Track(answer, len(embeddings), self._follow(frames, embeddings, name))

    def _follow(self, frames: Sequence[UInt8], embeddings: Tensor, name: str) -> Iterator[Bool]:
        tracker = Tracker(self.model.grounding_encoder, len(frames), self.memory_dtype)
        for i in range(len(frames)):
            yield self._step(tracker, i, _checked(frames[i], name), embeddings)

    @torch.no_grad()  # around a step, not the generator: it would hold in its caller's code too
    def _step(self, tracker: Tracker, i: int, frame: UInt8, embeddings: Tensor) -> Bool:
        height, width = frame.shape[:2]
        if not len(embeddings):
            return np.empty((0, height, width), np.bool_)
        with self._precision():
            sam_features = self._look(frame)
            prompted = i < PROMPTED_FRAMES
            logits = tracker.prompt(i, sam_features, embeddings) if prompted else tracker.follow(i, sam_features)
            return resize.predicted_masks(logits, height, width, self.recipe)

    def _precision(self) -> torch.autocast:
        half = self.model.embedding.weight.dtype == torch.bfloat16
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)

    def _look(self, picture: UInt8) -> SamFeatures:
        pixels = torch.from_numpy(resize.picture(picture, self.recipe.sam_size, self.recipe))[None]
        return self.model.grounding_encoder.encode(pixels.to(self.model.device), self.rounded)

    def _ask(
        self,
        pictures: Sequence[UInt8],
        texts: Sequence[str],
        regions: Sequence[Bool | None],
        names: Sequence[str],
    ) -> Answers:
        shown: list[UInt8] = []
        places: dict[int, list[int]] = {}
        rows, cells = [], []
        for picture, text, given, name in zip(pictures, texts, regions, names, strict=True):
            if id(picture) not in places:
                views = tiles.views(_checked(picture, name), self.most_tiles, self.recipe)
                places[id(picture)] = list(range(len(shown), len(shown) + len(views)))
                shown += [*views]
            grids = np.zeros((0, 16, 16), np.bool_) if given is None else cells_of(picture, given, self.recipe, name)
            cells.append(grids)
            counts = grids.sum((1, 2)).tolist()
            rows.append(self.model.prompts.ask(name, text, tiles=len(places[id(picture)]), cells=counts))
        most = max(map(len, cells))
        padded = np.stack([np.pad(grids, ((0, most - len(grids)), (0, 0), (0, 0))) for grids in cells])
        return self._answer(rows, np.stack(shown), [places[id(p)] for p in pictures], torch.from_numpy(padded))

    def _answer(
        self, rows: Sequence[Row], shown: UInt8, places: Sequence[Sequence[int]], regions: Tensor | None
    ) -> Answers:
        """Generate.

        Args:
            rows: M questions.
            shown: (B, 3, 448, 448) uint8.
            places: which of them each row has.
            regions: (M, R, 16, 16) bool.
        """
        model, prompts = self.model, self.model.prompts
        visual_tokens = torch.cat(
            [model.encode_image(self._vision(part)) for part in torch.from_numpy(shown).split(_AT_ONCE)]
        )
        most = max(map(len, places))
        images = torch.tensor([[*own, *[-1] * (most - len(own))] for own in places], device=model.device)
        packed = prompts.pack(rows, model.device, left=True)
        embeddings = model.embed_rows(
            packed, visual_tokens, images, None if regions is None else regions.to(model.device)
        )
        likeliest = lambda logits, step: logits.argmax(-1)  # noqa: E731
        return generate(model, packed, embeddings, self.max_new_tokens, likeliest, prompts.ended, keep_seg=True)

    def _vision(self, pictures: Tensor) -> Tensor:
        values = [codec.normalise(picture.numpy(), self.recipe.mean, self.recipe.std) for picture in pictures]
        return torch.from_numpy(np.stack(values)).to(self.model.device)


def _names(pictures: Sequence[UInt8], names: Sequence[str] | None) -> Sequence[str]:
    return [f"picture {i}" for i in range(1, len(pictures) + 1)] if names is None else names


def _checked(picture: UInt8, name: str) -> UInt8:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BadInput("no picture", where=name, met=f"{picture.dtype} {picture.shape}", wanted="uint8 (H, W, 3)")
    return picture
