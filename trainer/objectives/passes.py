"""The passes that objectives share: from a question about a phrase to a mask, from one about a region to a caption.

Shapes: B samples with M objects, each of which is one row of the language model; C is the vision tower's width, D the
language model's, V the size of the vocabulary, K the number of trained positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shards.errors import UserError
from trainer import fsdp
from trainer.config import Config
from trainer.data.batch import ConversationBatch, Frame, PairBatch, required
from trainer.data.choice import salt_of, shuffled
from trainer.model.architecture import VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, SamFeatures
from trainer.model.prompts import SEGMENT, SEGMENT_ANSWERS
from trainer.model.rows import IGNORE, Rows, TokenRow
from trainer.model.sa2va import Sa2VA
from trainer.objectives.losses import Beyond, even_losses, point_losses, uncertain_points
from trainer.objectives.noise import random_index
from trainer.transfer import to_device


@dataclass(frozen=True)
class Predicted:
    """What the model predicts in R rows: K tokens, and masks."""

    logits: Tensor
    """(K, V), before each position with a label."""
    labels: Tensor
    """(K,) int64."""
    row_of: Tensor
    """(K,) int64 in 0..R - 1, never falling: the row of each label."""
    masks: Tensor
    """(N, 256, 256) float32, logits of the masks that were asked for."""
    visual_tokens: Tensor | None
    """(P, 256, 4C), of the batch's pictures; of a black one, or None, where it has none."""
    idle: Tensor
    """() 0: belongs into a loss, for the gradient of layers that ran on nothing because other processes need them."""


class Passes:
    """Passes of one model under one configuration; not a module."""

    def __init__(self, model: Sa2VA, config: Config) -> None:
        self.model = model
        self.config = config

    @property
    def any_process(self) -> Callable[[bool], bool]:
        """Whether its argument is true on any process, where all must run the same layers: `fsdp.any_process_of`."""
        return fsdp.any_process_of(self.model)

    def rows(self, rows: Sequence[TokenRow]) -> Rows:
        """Return rows as tensors: laid end to end where `packing` is on, else padded to one length."""
        prompts = self.model.prompts
        stack = prompts.packed if self.config.packing else prompts.padded
        return stack(rows, self.model.device)

    def encode_image(self, frame: Frame) -> Tensor:
        """Encode a frame's `pixel_values` with `Sa2VA.encode_image`: (B, 256, 4C)."""
        return self.model.encode_image(required(frame.pixel_values))

    def encode_sam(self, frame: Frame) -> SamFeatures:
        """Encode a frame's `g_pixel_values` with `Sa2VA.encode_sam`."""
        return self.model.encode_sam(required(frame.g_pixel_values))

    def predict_masks(
        self,
        batch: PairBatch,
        rows: Sequence[TokenRow],
        visual_tokens: Tensor,
        sam_features: SamFeatures,
        phrase_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Segment the objects that rows ask for.

        Args:
            rows: M rows, see `segmentation_rows`.
            visual_tokens: (B, 256, 4C), of the frame to segment.
            sam_features: of the same frame.
            phrase_embeddings: (G, D), in place of the embeddings of the phrases' G tokens.

        Returns:
            (M, 256, 256) mask logits, and the cross-entropy of the answers' tokens, ().
        """
        model = self.model
        asked = self.rows(rows)
        embeddings = model.embed_rows(asked, visual_tokens, batch.image_of_object, phrase_embeddings=phrase_embeddings)
        states = model.run_language_model(embeddings, asked.attention, asked.positions)
        lang = cross_entropy(model.answer_logits(states, asked), asked.labels, asked.row_of_label, len(rows))
        return model.decode_masks(states, asked, sam_features, batch.image_of_object), lang

    def segment_texts(
        self, batch: PairBatch, texts: Sequence[str], draws: Sequence[torch.Generator] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Segment frame 1 from one text per object.

        Args:
            texts: M texts.
            draws: as of `segmentation_rows`.

        Returns:
            (M, 256, 256) mask logits; () the language loss of the answers; (B, 256, 4C) visual tokens of frame 1.
        """
        frame = batch.frames[0]
        rows = self.segmentation_rows(batch, texts, draws)
        visual_tokens = self.encode_image(frame)
        sam_features = self.encode_sam(frame)
        logits, lang = self.predict_masks(batch, rows, visual_tokens, sam_features)
        return logits, lang, visual_tokens

    def caption_logits(
        self,
        batch: PairBatch,
        visual_tokens: Tensor,
        regions: Tensor,
        answers: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the captions of regions, with the captions as input (teacher forcing).

        Args:
            visual_tokens: (B, 256, 4C), of the frame that holds the regions.
            regions: (M, 16, 16) bool.
            answers: input tokens of M captions.
            targets: the tokens that the answers' positions are trained to be.
            scale: (M, 16, 16) float32, factors of the visual tokens of the regions' cells; None: 1.

        Returns:
            (K, V) logits, (K,) targets, and the row of each, (K,) int64.
        """
        model = self.model
        prompts = self.model.prompts
        stacked = regions[:, None]
        inputs = zip(sample_keys(batch), count_cells(batch, stacked), answers, targets, strict=True)
        rows = self.rows([prompts.describe(*row) for row in inputs])
        scales = None if scale is None else scale[:, None]
        embeddings = model.embed_rows(rows, visual_tokens, batch.image_of_object, stacked, scale=scales)
        states = model.run_language_model(embeddings, rows.attention, rows.positions)
        return model.answer_logits(states, rows), rows.labels, rows.row_of_label

    def predict(self, batch: ConversationBatch, chosen: Tensor | None = None) -> Predicted:
        """Read the rows of a batch once, and decode their masks in one call.

        Whatever the batch lacks (pictures, rows, masks), all processes run the same layers in the same order where they
        must (`any_process`): on a black picture, an empty row, the state of its token.

        Args:
            batch: of R rows; R may be 0.
            chosen: (C,) int64 in 0..N - 1 on the host, numbers of the masks to decode; None: all.
        """
        model = self.model
        visual_tokens = self._encode_shown(batch)
        sam_features = self._encode_segmented(batch)
        count = len(batch.rows)
        if not self.any_process(count > 0):
            nothing = torch.zeros(0, dtype=torch.int64, device=model.device)
            logits = model.embedding.weight.new_zeros(0, len(model.prompts.ordinary))
            return Predicted(logits, nothing, nothing, self._no_masks(), visual_tokens, logits.new_zeros(()))
        rows = self.rows(batch.rows or [self.empty_row()])
        images, regions = batch.image_of_row, batch.regions
        if not count:
            images = torch.full((1, 1), -1)
            regions = torch.zeros(1, 0, 16, 16, dtype=torch.bool)
        embeddings = model.embed_rows(rows, visual_tokens, images, regions)
        states = model.run_language_model(embeddings, rows.attention, rows.positions)
        idle = 0.0 * states.sum() if not count else states.new_zeros(())
        logits = model.answer_logits(states, rows)
        masks = self._no_masks()
        if sam_features is not None and batch.g_pixel_values is None:
            nothing = torch.zeros(1, dtype=torch.int64, device=model.device)
            unasked = model.text_hidden_fcs(states[:1, 0])
            idle = idle + 0.0 * model.grounding_encoder.decode(sam_features, nothing, unasked).sum()
        elif sam_features is not None and (chosen is None or len(chosen)):
            every = slice(None) if chosen is None else chosen
            pictures, segs = batch.picture_of_mask[every], batch.seg_of_mask[every]
            masks = model.decode_masks(states, rows, sam_features, pictures, segs)
        return Predicted(logits, rows.labels, rows.row_of_label, masks, visual_tokens, idle.float())

    def _encode_shown(self, batch: ConversationBatch) -> Tensor | None:
        """Visual tokens of a batch's pictures, of one black picture where only other processes have one, or None."""
        pictures = batch.pixel_values
        if not self.any_process(pictures is not None):
            return None
        if pictures is None:
            pictures = torch.zeros(1, 3, VISION_SIZE, VISION_SIZE, device=self.model.device)
        return self.model.encode_image(pictures)

    def _encode_segmented(self, batch: ConversationBatch) -> SamFeatures | None:
        """SAM 2's features, of the pictures that `_encode_shown` would take."""
        pictures = batch.g_pixel_values
        if not self.any_process(pictures is not None):
            return None
        if pictures is None:
            pictures = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8, device=self.model.device)
        return self.model.encode_sam(pictures)

    def empty_row(self) -> TokenRow:
        """A row without a label, for a process without rows where others have some."""
        return TokenRow("", [self.model.prompts.pad], [IGNORE], [False])

    def _no_masks(self) -> Tensor:
        return torch.zeros(0, 256, 256, device=self.model.device)

    def encode_second_image(self, batch: PairBatch, visual_tokens: Tensor) -> Tensor:
        """Visual tokens of frame 2, (B, 256, 4C), given those of frame 1; only frames that differ are encoded."""
        paired = batch.paired
        if not self.any_process(bool(paired.any())):
            return visual_tokens
        if not paired.any():  # another process encodes a second frame: all must run the tower's layers
            return visual_tokens + 0 * self.model.encode_image(required(batch.frames[0].pixel_values)[:1])
        different = to_device(paired.nonzero()[:, 0], visual_tokens.device)
        second = self.model.encode_image(required(batch.frames[1].pixel_values).index_select(0, different))
        return second if paired.all() else visual_tokens.index_put((different,), second)

    def captioner_inputs(
        self, batch: PairBatch, visual_tokens: Tensor
    ) -> tuple[list[TokenRow], Tensor, Tensor, Tensor]:
        """The first arguments of `Captioner.forward`, which ask for descriptions of frame 1's regions."""
        prompts = self.model.prompts
        regions = required(batch.frames[0].prompt_masks)[:, None]
        rows = [
            prompts.describe(n, cells) for n, cells in zip(sample_keys(batch), count_cells(batch, regions), strict=True)
        ]
        return rows, visual_tokens, batch.image_of_object, regions

    def segmentation_rows(
        self, batch: PairBatch, phrases: Sequence[str | Sequence[int]], draws: Sequence[torch.Generator] | None
    ) -> list[TokenRow]:
        """A row with a segmentation question and its answer for each of M phrases.

        Args:
            phrases: texts, or tokens.
            draws: one generator per object, which draws the wording if `vary_wording` is on; None: the first wording.
        """
        rows = []
        for i, (key, phrase) in enumerate(zip(sample_keys(batch), phrases, strict=True)):
            wording = (0, 0)
            if draws and self.config.vary_wording:
                wording = random_index(draws[i], len(SEGMENT)), random_index(draws[i], len(SEGMENT_ANSWERS))
            rows.append(self.model.prompts.segment(key, phrase, *wording))
        return rows

    def chosen_texts(self, batch: PairBatch) -> list[str]:
        """One text per object, in a seeded order: each text of an object is taken before any is taken twice."""
        objects = zip(required_texts(batch), sample_keys(batch), batch.objects, batch.turns, strict=True)
        orders = [
            (texts, shuffled(range(len(texts)), salt_of(self.config.seed, key, number)), turn)
            for texts, key, number, turn in objects
        ]
        return [texts[order[turn % len(order)]] for texts, order, turn in orders]

    def mask_losses(
        self, logits: Tensor, masks: Tensor, draws: list[torch.Generator], beyond: Beyond = "border"
    ) -> dict[str, Tensor]:
        """Losses of logits (M, 256, 256) against masks (M, 1024, 1024) bool, each ().

        `bce` and `dice` are taken at points most of which are uncertain; `bce_uniform` and `dice_uniform`, without
        gradient, at evenly spread points as in an evaluation. `beyond`: see `logits_at`.
        """
        config = self.config
        with full_precision(logits):
            how = (config.num_points, config.oversample_ratio, config.importance_sample_ratio)
            points = uncertain_points(logits.detach(), *how, draws, beyond)
            bce, dice = point_losses(logits, masks, points, beyond)
            even = dict(zip(("bce_uniform", "dice_uniform"), even_losses(logits, masks), strict=True))
        return {name: loss.mean() for name, loss in {"bce": bce, "dice": dice, **even}.items()}

    def caption_tokens(self, text: str) -> list[int]:
        """Tokens of a text: at most `max_text_tokens`, then the end unless the text was cut."""
        words = self.model.prompts.letters(text.strip())
        most = self.config.max_text_tokens
        return words[:most] if len(words) > most else words + self.model.prompts.end_ids


def cross_entropy(logits: Tensor, targets: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Mean over rows of `cross_entropy_by_row`, (): long answers weigh no more than short ones."""
    return cross_entropy_by_row(logits, targets, row_of, rows).mean()


def cross_entropy_by_row(logits: Tensor, targets: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Mean cross-entropy per row, (rows,) float32.

    Args:
        logits: (K, V).
        targets: (K,) int64.
        row_of: (K,) int64, the row of each target.
        rows: number of rows.
    """
    with full_precision(logits):
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        none = torch.zeros(rows, device=each.device)
        counts = none.index_add(0, row_of, torch.ones_like(each))  # on a GPU `bincount` reads its result's length back
        return none.index_add(0, row_of, each) / counts.clamp_min(1)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast: losses and noise are float32 even if the model runs in bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def sample_keys(batch: PairBatch) -> list[str]:
    """The sample's key of each of M objects."""
    return [batch.keys[i] for i in batch.image_of_object.tolist()]


def required_texts(batch: PairBatch) -> list[list[str]]:
    """The texts of each object; raises `UserError` if one has none."""
    for key, texts in zip(sample_keys(batch), batch.texts, strict=True):
        if not texts:
            do = "train these shards with objective=dual, which needs no text"
            raise UserError("an object has no text", where=f"sample {key}", wanted="at least one", do=do)
    return [list(texts) for texts in batch.texts]


def count_cells(batch: PairBatch, regions: Tensor) -> list[list[int]]:
    """Cells of each region (M, R, 16, 16), M lists of R counts; raises `UserError` if one has none."""
    counts: list[list[int]] = regions.flatten(2).sum(2).tolist()
    for key, cells in zip(sample_keys(batch), counts, strict=True):
        if 0 in cells:
            raise UserError("a region has no prompt cell", where=f"sample {key}, prompt_masks1", wanted="at least 1")
    return counts
