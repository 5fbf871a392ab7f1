"""The passes that objectives are made of: a question about a phrase to a mask, a question about a region to words.

Shapes: B samples, M objects, each object one row of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shards.errors import UserError
from trainer import fsdp
from trainer.config import Config
from trainer.data.batch import Batch, Frame, required
from trainer.data.choice import salt_of, shuffled
from trainer.model.grounding import SamFeatures
from trainer.model.prompts import SEGMENT, SEGMENT_ANSWERS, PackedRows, TokenRow
from trainer.model.sa2va import Sa2VA
from trainer.objectives.losses import even_losses, point_losses, uncertain_points
from trainer.objectives.noise import choice


class Passes:
    """Passes of one model under one configuration; a module of neither."""

    def __init__(self, model: Sa2VA, config: Config) -> None:
        self.model, self.config = model, config

    @property
    def any_process(self) -> Callable[[bool], bool]:
        """Whether its argument is true on any process, where all must run the same layers (FSDP); else `bool`."""
        return fsdp.any_process_of(self.model)

    def encode_image(self, frame: Frame) -> Tensor:
        """`Sa2VA.encode_image` of a frame: (B, 256, 4C)."""
        return self.model.encode_image(required(frame.pixel_values))

    def encode_sam(self, frame: Frame) -> SamFeatures:
        """`Sa2VA.encode_sam` of a frame."""
        return self.model.encode_sam(required(frame.g_pixel_values))

    def segment(
        self,
        batch: Batch,
        rows: Sequence[TokenRow],
        visual_tokens: Tensor,
        sam_features: SamFeatures,
        phrase_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read segmentation questions with their answers: (M, 256, 256) mask logits, () loss of the answers.

        Args:
            rows: M rows of `Prompts.segment`.
            visual_tokens: (B, 256, 4C), what `Sa2VA.encode_image` returns of the pictures that are asked about.
            sam_features: what `Sa2VA.encode_sam` returns of them.
            phrase_embeddings: (G, D), embeddings in the place of phrases.
        """
        model = self.model
        packed = model.prompts.pack(rows, model.device)
        embeddings = model.embed_rows(packed, visual_tokens, batch.image_of_object, phrase_embeddings=phrase_embeddings)
        states = model.run_language_model(embeddings, packed.attention, packed.positions)
        logits, labels, row_of = model.answer_logits(states, packed.labels)
        lang = cross_entropy(logits, labels, row_of, len(rows))
        return model.decode_masks(states, packed, sam_features, batch.image_of_object), lang

    def describe(
        self,
        batch: Batch,
        visual_tokens: Tensor,
        regions: Tensor,
        answers: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read description questions with their answers: (K, V) logits, (K,) the targets, (K,) the row of each.

        Args:
            visual_tokens: (B, 256, 4C), of the pictures that the regions lie in.
            regions: (M, 16, 16) bool.
            answers: M answers, as they are fed.
            targets: what their positions are trained to be.
            scale: (M, 16, 16), a factor for the visual tokens of each region's cells; 1 where None.
        """
        model, prompts = self.model, self.model.prompts
        stacked = regions[:, None]
        inputs = zip(names_of(batch), cells_of(batch, stacked), answers, targets, strict=True)
        rows = prompts.pack([prompts.describe(*row) for row in inputs], model.device)
        scales = None if scale is None else scale[:, None]
        embeddings = model.embed_rows(rows, visual_tokens, batch.image_of_object, stacked, scale=scales)
        states = model.run_language_model(embeddings, rows.attention, rows.positions)
        return model.answer_logits(states, rows.labels)

    def encode_second_image(self, batch: Batch, visual_tokens: Tensor) -> Tensor:
        """Visual tokens (B, 256, 4C) of frame 2, given those of frame 1: no picture goes through the tower twice."""
        paired = batch.paired
        if not self.any_process(bool(paired.any())):
            return visual_tokens
        if not paired.any():  # another process looks at a second frame, and the tower's layers work in step
            return visual_tokens + 0 * self.model.encode_image(required(batch.frames[0].pixel_values)[:1])
        second = self.model.encode_image(required(batch.frames[1].pixel_values)[paired])
        return second if paired.all() else visual_tokens.index_put((paired,), second)

    def description_question(self, batch: Batch, visual_tokens: Tensor) -> tuple[PackedRows, Tensor, Tensor, Tensor]:
        """What `Captioner.forward` takes first: the question's rows, visual tokens, pictures of rows, regions."""
        prompts, regions = self.model.prompts, required(batch.frames[0].prompt_masks)[:, None]
        rows = [prompts.describe(n, cells) for n, cells in zip(names_of(batch), cells_of(batch, regions), strict=True)]
        return prompts.pack(rows, self.model.device, left=True), visual_tokens, batch.image_of_object, regions

    def question(
        self, batch: Batch, phrases: Sequence[str | Sequence[int]], draws: Sequence[torch.Generator] | None
    ) -> list[TokenRow]:
        """A segmentation question and answer for each phrase: worded at random, or without draws in the first wording,
        as always where `vary_wording` says no."""
        rows = []
        for i, (name, phrase) in enumerate(zip(names_of(batch), phrases, strict=True)):
            wording = (0, 0)
            if draws and self.config.vary_wording:
                wording = choice(draws[i], len(SEGMENT)), choice(draws[i], len(SEGMENT_ANSWERS))
            rows.append(self.model.prompts.segment(name, phrase, *wording))
        return rows

    def chosen_texts(self, batch: Batch) -> list[str]:
        """One of each object's texts, in a seeded order of their own: each comes up before one comes twice."""
        objects = zip(texts_of(batch), names_of(batch), batch.objects, batch.turns, strict=True)
        orders = [
            (texts, shuffled(range(len(texts)), salt_of(self.config.seed, name, number)), turn)
            for texts, name, number, turn in objects
        ]
        return [texts[order[turn % len(order)]] for texts, order, turn in orders]

    def mask_losses(self, logits: Tensor, masks: Tensor, draws: list[torch.Generator]) -> dict[str, Tensor]:
        """`bce` and `dice`, each (): of logits (M, 256, 256) against masks (M, 1024, 1024), at points of which most are
        uncertain; without gradient `bce_uniform` and `dice_uniform`, at evenly spread ones, as in an evaluation."""
        config = self.config
        with full_precision(logits):
            points = uncertain_points(
                logits.detach(), config.num_points, config.oversample_ratio, config.importance_sample_ratio, draws
            )
            bce, dice = point_losses(logits, masks, points)
            even = dict(zip(("bce_uniform", "dice_uniform"), even_losses(logits, masks), strict=True))
        return {name: loss.mean() for name, loss in {"bce": bce, "dice": dice, **even}.items()}

    def tokens_of(self, text: str) -> list[int]:
        """A supervised caption as it is fed: at most `max_text_tokens` tokens, then the end unless it was cut."""
        words = self.model.prompts.encode(text.strip())
        most = self.config.max_text_tokens
        return words[:most] if len(words) > most else words + self.model.prompts.end_ids


def cross_entropy(logits: Tensor, targets: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Mean over rows of each row's mean cross-entropy, (): long answers weigh no more than short ones."""
    return by_row(logits, targets, row_of, rows).mean()


def by_row(logits: Tensor, targets: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Each row's mean cross-entropy, (rows,) float32, of logits (K, V) against targets (K,); `row_of` (K,)."""
    with full_precision(logits):
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        sums = torch.zeros(rows, device=each.device).index_add(0, row_of, each)
        return sums / torch.bincount(row_of, minlength=rows).clamp_min(1)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Losses and noise are float32 even where the model runs in bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def names_of(batch: Batch) -> list[str]:
    """The key of each object's sample."""
    return [batch.keys[i] for i in batch.image_of_object.tolist()]


def texts_of(batch: Batch) -> list[list[str]]:
    """The texts of each object; raises `UserError` for an object without one."""
    for name, texts in zip(names_of(batch), batch.texts, strict=True):
        if not texts:
            do = "train these shards with objective=dual, which needs no text"
            raise UserError("an object has no text", where=f"sample {name}", wanted="at least one", do=do)
    return [list(texts) for texts in batch.texts]


def cells_of(batch: Batch, regions: Tensor) -> list[list[int]]:
    """How many cells each region (M, R, 16, 16) has; raises `UserError` for one that has none."""
    counts: list[list[int]] = regions.flatten(2).sum(2).tolist()
    for name, cells in zip(names_of(batch), counts, strict=True):
        if 0 in cells:
            raise UserError("a region has no prompt cell", where=f"sample {name}, prompt_masks1", wanted="at least 1")
    return counts
