"""One training step in one forward: mask -> caption -> mask, or text -> mask.

Everything happens inside `DualLoop.forward`: methods called past a DDP wrapper would leave gradients
unaveraged, and say nothing. Shapes: B samples, M objects, each object one row of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import UserError
from trainer.config import Config
from trainer.data import Need
from trainer.gumbel import straight_through_gumbel
from trainer.losses import mask_metrics, point_losses, regular_points, uncertain_points
from trainer.model.captioner import Captioner
from trainer.model.prompts import SEGMENT, SEGMENT_ANSWERS, Row
from trainer.model.sa2va import Sa2VA
from trainer.modes import evaluating
from trainer.noise import choice, object_generators, uniform
from trainer.teacher import Teacher

FIELDS = {
    "dual": ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2"),
    "segment": ("pixel_values1", "g_pixel_values1", "masks1"),
}
"""What each objective reads of a batch."""
NEED: dict[str, Need] = {"dual": "regions", "segment": "texts"}
"""What each objective needs of an object."""
TARGET_FRAME = {"dual": 2, "segment": 1}
"""The frame whose masks each objective predicts."""
_EVALUATION_GRID = 256  # points a side: as many as the decoder's logits have


@dataclass(frozen=True)
class Spoken:
    """What pass A says of each object."""

    embeddings: Tensor
    """(G, D), the embeddings of all objects' words one after the other; carry gradient."""
    words: list[list[int]]
    """The sampled tokens of each object, G in all."""
    logits: Tensor
    """(K, V): of the words and of the end tokens."""
    targets: Tensor
    """(K,): the pseudo captions with their end tokens."""
    anchor: Tensor
    """(): cross-entropy against the pseudo captions."""


class DualLoop(nn.Module):
    """The step of both objectives.

    Args:
        model: on its device, with its trainable parameters chosen.
        config: of the run.
    """

    def __init__(self, model: Sa2VA, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.teacher = Teacher(model, config.ema_decay)

    def forward(self, batch: dict[str, Any], objective: str) -> dict[str, Tensor]:
        """Run one step.

        Args:
            batch: what `trainer.data.Loader` yields, with `FIELDS[objective]`.
            objective: "dual" or "segment".

        Returns:
            `loss`, with gradient, and its parts (`bce`, `dice`, `lang`, `anchor`) and statistics, all of shape ().

        Raises:
            UserError: an object without text (segment) or without a single prompt cell (dual).
        """
        batch = self._to_device(batch)
        draws = object_generators(batch, self.config.seed)
        return self._dual(batch, draws) if objective == "dual" else self._segment(batch, draws)

    def _dual(self, batch: dict[str, Any], draws: list[torch.Generator]) -> dict[str, Tensor]:
        seen = self.model.see(batch["pixel_values1"])
        captions = self.pseudo_captions(batch, seen, draws)
        spoken = self.pass_a(batch, seen, captions, draws)
        questions = [(choice(g, len(SEGMENT)), choice(g, len(SEGMENT_ANSWERS))) for g in draws]
        prompts, names = self.model.prompts, _names(batch)
        rows = [prompts.segment(n, w, q, a) for n, w, (q, a) in zip(names, spoken.words, questions, strict=True)]
        logits, lang = self.pass_b(batch, rows, frame=2, given=spoken.embeddings)
        losses = self._mask_losses(logits, batch["masks2"], draws)
        length = torch.tensor(sum(map(len, spoken.words)) / len(rows), device=lang.device)
        return self._total({**losses, "lang": lang, "anchor": spoken.anchor}) | {"caption_tokens": length}

    def _segment(self, batch: dict[str, Any], draws: list[torch.Generator]) -> dict[str, Tensor]:
        rows = []
        for name, texts, draw in zip(_names(batch), _texts(batch), draws, strict=True):
            text = texts[choice(draw, len(texts))]
            question, answer = choice(draw, len(SEGMENT)), choice(draw, len(SEGMENT_ANSWERS))
            rows.append(self.model.prompts.segment(name, text, question, answer))
        logits, lang = self.pass_b(batch, rows, frame=1)
        return self._total({**self._mask_losses(logits, batch["masks1"], draws), "lang": lang})

    def pseudo_captions(self, batch: dict[str, Any], seen: Tensor, draws: list[torch.Generator]) -> list[list[int]]:
        """The teacher's captions of frame 1's regions, each with its end token where it was reached."""
        config = self.config
        draw = uniform(draws, config.max_caption_tokens) if config.caption_temperature > 0 else None
        return self.teacher.describe(
            *self._description_question(batch, seen), config.max_caption_tokens, config.caption_temperature, draw
        ).tokens()

    def pass_a(
        self, batch: dict[str, Any], seen: Tensor, captions: list[list[int]], draws: list[torch.Generator]
    ) -> Spoken:
        """The student reads the corrupted captions of frame 1 and says the next word at each place.

        Only the words get on to pass B: what stands at an end token or behind it has neither gradient nor attention
        there. Words are sampled among text alone, so that they cannot be mistaken for `[SEG]` or an image place.
        """
        model, config, prompts = self.model, self.config, self.model.prompts
        regions = batch["prompt_masks1"][:, None]
        fed = [self._corrupt(caption, draw) for caption, draw in zip(captions, draws, strict=True)]
        inputs = zip(_names(batch), _cells(batch, regions), fed, captions, strict=True)
        rows = prompts.pack([prompts.describe(*row) for row in inputs], model.device)
        embeddings = model.embed(rows, seen, batch["image_of_object"], regions)
        states = model.read(embeddings, rows.attention, rows.positions)
        logits, targets, row_of = model.answer_logits(states, rows.labels)
        with _full_precision(logits):
            anchor = _mean_by_row(F.cross_entropy(logits.float(), targets, reduction="none"), row_of, len(captions))
            word = targets != prompts.end
            lengths = torch.bincount(row_of[word], minlength=len(captions)).tolist()
            width = min(config.gumbel_top_k, int(prompts.ordinary.sum()))
            pairs = zip(lengths, draws, strict=True)
            draw = torch.cat([torch.rand(n, width, generator=g) for n, g in pairs]).to(logits.device)
            allowed = prompts.ordinary.to(logits.device)
            given, tokens = straight_through_gumbel(
                logits[word], model.embedding.weight, draw, config.gumbel_tau, allowed
            )
        words = [part.tolist() for part in tokens.cpu().split(lengths)]
        return Spoken(given, words, logits, targets, anchor)

    def pass_b(
        self, batch: dict[str, Any], rows: list[Row], frame: int, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read segmentation questions about `frame` with their answers: (M, 256, 256) mask logits, () answer loss."""
        model = self.model
        packed = model.prompts.pack(rows, model.device)
        seen = model.see(batch[f"pixel_values{frame}"])
        embeddings = model.embed(packed, seen, batch["image_of_object"], given=given)
        states = model.read(embeddings, packed.attention, packed.positions)
        answer, labels, row_of = model.answer_logits(states, packed.labels)
        with _full_precision(answer):
            lang = _mean_by_row(F.cross_entropy(answer.float(), labels, reduction="none"), row_of, len(rows))
        looked = model.look(batch[f"g_pixel_values{frame}"])
        return model.point_out(states, packed, looked, batch["image_of_object"]), lang

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any], objective: str) -> dict[str, Any]:
        """Predict as a user would: the student's own caption (dual) or the first text (segment), then the mask.

        Returns:
            (M,) float32 each: `bce`, `dice_loss`, `iou`, `dice`, on a regular grid; `logits` (M, 256, 256);
            `captions`, M texts.
        """
        batch = self._to_device(batch)
        model, frame = self.model, TARGET_FRAME[objective]
        prompts, names = model.prompts, _names(batch)
        with evaluating(self):
            if objective == "dual":
                question = self._description_question(batch, model.see(batch["pixel_values1"]))
                written = Captioner(model)(*question, self.config.max_caption_tokens).tokens()
                words = [[t for t in caption if t != prompts.end] for caption in written]
                rows = [prompts.segment(n, w) for n, w in zip(names, words, strict=True)]
                captions = [prompts.readable(w) for w in words]
            else:
                captions = [texts[0] for texts in _texts(batch)]
                rows = [prompts.segment(n, text) for n, text in zip(names, captions, strict=True)]
            logits, _ = self.pass_b(batch, rows, frame)
        masks = batch[f"masks{frame}"]
        with _full_precision(logits):
            points = regular_points(len(masks), _EVALUATION_GRID, logits.device)
            bce, dice_loss = point_losses(logits, masks, points)
            metrics = mask_metrics(logits, masks, _EVALUATION_GRID)
        return {"bce": bce, "dice_loss": dice_loss, **metrics, "logits": logits, "captions": captions}

    def _description_question(self, batch: dict[str, Any], seen: Tensor) -> tuple[Any, ...]:
        """What `Captioner.forward` takes first: the question's rows, visual tokens, pictures of rows, regions."""
        prompts, regions = self.model.prompts, batch["prompt_masks1"][:, None]
        rows = [prompts.describe(n, cells) for n, cells in zip(_names(batch), _cells(batch, regions), strict=True)]
        return prompts.pack(rows, self.model.device, left=True), seen, batch["image_of_object"], regions

    def _corrupt(self, caption: list[int], draw: torch.Generator) -> list[int]:
        """Replace each word with probability `corrupt_ratio` by a random one; the end token stays."""
        ordinary = self.model.prompts.ordinary.nonzero()[:, 0]
        chosen = torch.rand(len(caption), generator=draw) < self.config.corrupt_ratio
        others = ordinary[torch.randint(len(ordinary), (len(caption),), generator=draw)].tolist()
        end = self.model.prompts.end
        return [o if c and t != end else t for t, o, c in zip(caption, others, chosen.tolist(), strict=True)]

    def _mask_losses(self, logits: Tensor, masks: Tensor, draws: list[torch.Generator]) -> dict[str, Tensor]:
        config = self.config
        with _full_precision(logits):
            points = uncertain_points(
                logits.detach(), config.num_points, config.oversample_ratio, config.importance_sample_ratio, draws
            )
            bce, dice = point_losses(logits, masks, points)
        return {"bce": bce.mean(), "dice": dice.mean()}

    def _total(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        weights = {
            "bce": config.lambda_mask,
            "dice": config.lambda_dice,
            "lang": config.lambda_lang,
            "anchor": config.lambda_anchor,
        }
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.model.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Losses and noise are float32 even where the model runs in bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def _names(batch: dict[str, Any]) -> list[str]:
    return [batch["keys"][i] for i in batch["image_of_object"].tolist()]


def _texts(batch: dict[str, Any]) -> list[list[str]]:
    for name, texts in zip(_names(batch), batch["texts"], strict=True):
        if not texts:
            do = "train these shards with objective=dual"
            raise UserError("an object has no text", where=f"sample {name}", wanted="text for objective=segment", do=do)
    return [list(texts) for texts in batch["texts"]]


def _cells(batch: dict[str, Any], regions: Tensor) -> list[list[int]]:
    """How many cells each region (M, R, 16, 16) has."""
    counts: list[list[int]] = regions.flatten(2).sum(2).tolist()
    for name, cells in zip(_names(batch), counts, strict=True):
        if 0 in cells:
            raise UserError("a region has no prompt cell", where=f"sample {name}, prompt_masks1", wanted="at least 1")
    return counts


def _mean_by_row(values: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Mean over rows of the mean over each row's values: long answers weigh no more than short ones."""
    sums = torch.zeros(rows, device=values.device).index_add(0, row_of, values)
    return (sums / torch.bincount(row_of, minlength=rows).clamp_min(1)).mean()
