"""Sa2VA, assembled from transformers' InternVL vision tower and language models and from the `sam2` package.

Parts carry the names of the released checkpoints. Shapes below: B pictures, M rows of L tokens, D the language model's
width, C the vision tower's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, InternVLVisionModel
from transformers.cache_utils import Cache

from shards.errors import UserError
from trainer.model.architecture import Architecture, preset_named
from trainer.model.grounding import GroundingEncoder, SamFeatures
from trainer.model.prompts import IGNORE, IMAGE_TOKENS, PackedRows, Prompts
from trainer.model.tokenizer import byte_tokenizer


def pixel_shuffle(tokens: Tensor) -> Tensor:
    """Fold each 2 x 2 block of a square of tokens into one (InternVL's version 2): (B, 4n, C) to (B, n, 4C).

    A block's tokens follow one another row by row.
    """
    count, length, width = tokens.shape
    side = int(length**0.5) // 2
    blocks = tokens.view(count, side, 2, side, 2, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(count, side * side, 4 * width)


class Sa2VA(nn.Module):
    """The model. It is called through its methods; `trainer.step` composes them into one `forward`."""

    def __init__(self, architecture: Architecture, prompts: Prompts, *, hollow: bool = False) -> None:
        """Build with random weights; `hollow`: without memory for the two large parts, whose weights will be loaded."""
        super().__init__()
        architecture.check()
        self.architecture, self.prompts = architecture, prompts
        vision, language = architecture.vision, architecture.language
        width = language.hidden_size
        with init_empty_weights(include_buffers=False) if hollow else nullcontext():
            self.vision_model = InternVLVisionModel(vision)
            self.language_model = AutoModelForCausalLM.from_config(language)
        self.grounding_encoder = GroundingEncoder(architecture.sam)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * vision.hidden_size),
            nn.Linear(4 * vision.hidden_size, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.grounding_encoder.width), nn.Dropout(0.0)
        )

    @property
    def device(self) -> torch.device:
        return next(self.mlp1.parameters()).device

    @property
    def layer_names(self) -> set[str]:
        """The classes of the layers of vision tower, language model and SAM 2's image encoder."""
        named = (self.vision_model._no_split_modules or (), self.language_model._no_split_modules or ())
        return {name for names in named for name in names} | {"MultiScaleBlock"}

    @property
    def embedding(self) -> nn.Embedding:
        """The language model's token embedding."""
        module = self.language_model.get_input_embeddings()
        assert isinstance(module, nn.Embedding)
        return module

    @property
    def tied(self) -> bool:
        """Whether the output head shares the weights of the token table."""
        return self.language_model.lm_head.weight is self.embedding.weight

    def tie(self) -> None:
        """Let the output head share the weights of the token table."""
        self.language_model.lm_head.weight = self.embedding.weight

    def train(self, mode: bool = True) -> Sa2VA:
        """Frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in (self.vision_model, self.grounding_encoder.sam2_model.image_encoder):
            encoder.train(mode and next(encoder.parameters()).requires_grad)
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Pictures (B, 3, 448, 448) float32, normalised, to visual tokens before the projector: (B, 256, 4C)."""
        trains = next(self.vision_model.parameters()).requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            states = self.vision_model(pixel_values=pixel_values).last_hidden_state
            return pixel_shuffle(states[:, 1:])  # without the class token

    def embed_rows(
        self,
        rows: PackedRows,
        visual_tokens: Tensor,
        image_of_row: Tensor,
        regions: Tensor | None = None,
        phrase_embeddings: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Embeddings of rows: (M, L, D).

        In reading order the `<IMG_CONTEXT>` places of a row get the 256 visual tokens of each of its pictures, then for
        each region the visual tokens of the last picture where the region is set, row by row.

        Args:
            rows: M rows.
            visual_tokens: (B, 256, 4C), what `encode_image` returns.
            image_of_row: (M,) int64; or (M, P) where rows have several pictures (tiles, frames), -1 after the last.
            regions: (M, R, 16, 16) bool.
            phrase_embeddings: (G, D), the embeddings of the G places that `rows.replaced` marks, in reading order.
            scale: (M, R, 16, 16), factors of the regions' visual tokens, each at its cell.

        Raises:
            UserError: a row's `<IMG_CONTEXT>` places are not as many as its visual tokens.
        """
        embeddings = self.embedding(rows.ids)
        images = image_of_row if image_of_row.ndim == 2 else image_of_row[:, None]
        has = images >= 0
        chosen = has[:, :, None].expand(-1, -1, IMAGE_TOKENS)
        if regions is not None:
            last = images.gather(1, has.sum(1, keepdim=True) - 1)
            images = torch.cat([images, last.expand(-1, regions.shape[1])], 1)
            chosen = torch.cat([chosen, regions.flatten(2)], 1)
        places = rows.ids == self.prompts.context
        _check_counts(rows.names, places.sum(1).tolist(), chosen.sum((1, 2)).tolist())
        row, slot, cell = chosen.nonzero(as_tuple=True)
        # Looked up as in a table: the gradient of an index adds up what several objects take in the order of threads.
        visual = F.embedding(images[row, slot] * IMAGE_TOKENS + cell, self.mlp1(visual_tokens).flatten(0, 1))
        if scale is not None:
            whole = scale.new_ones(len(images), images.shape[1] - scale.shape[1], IMAGE_TOKENS)
            visual = visual * torch.cat([whole, scale.flatten(2)], 1)[row, slot, cell][:, None]
        embeddings = embeddings.index_put((places,), visual.to(embeddings.dtype))
        if phrase_embeddings is not None:
            embeddings = embeddings.index_put((rows.replaced,), phrase_embeddings.to(embeddings.dtype))
        return embeddings

    def run_language_model(
        self, embeddings: Tensor, attention: Tensor, positions: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Run the language model: states after its final norm, (M, L, D).

        Args:
            embeddings: (M, L, D).
            attention: (M, past + L) int64, 0 on padding.
            positions: (M, L) int64.
            cache: keys and values of the past; extended in place.
        """
        states: Tensor = self.language_model.model(
            inputs_embeds=embeddings,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states

    def answer_logits(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits where a label follows, and only there.

        Args:
            states: (M, L, D).
            labels: (M, L) int64, `IGNORE` where nothing is trained.

        Returns:
            (K, V) logits, (K,) the labels, (K,) the row of each, in reading order.
        """
        wanted = labels[:, 1:] != IGNORE
        return self.language_model.lm_head(states[:, :-1][wanted]), labels[:, 1:][wanted], wanted.nonzero()[:, 0]

    def encode_sam(self, g_pixel_values: Tensor) -> SamFeatures:
        """Pictures (B, 3, 1024, 1024) uint8 to features for `decode_masks`."""
        return self.grounding_encoder.encode(g_pixel_values)

    def decode_masks(self, states: Tensor, rows: PackedRows, sam_features: SamFeatures, image_of_row: Tensor) -> Tensor:
        """Mask logits (M, 256, 256) float32 of rows with one `[SEG]` each, from the states at its place."""
        embeddings = self.text_hidden_fcs(states[rows.ids == self.prompts.seg])
        return self.grounding_encoder.decode(sam_features, image_of_row, embeddings)


def build(preset: str) -> Sa2VA:
    """A model with random weights, float32, on the CPU."""
    architecture = preset_named(preset)
    prompts = Prompts(byte_tokenizer(), architecture.template, architecture.language.vocab_size)
    model = Sa2VA(architecture, prompts)
    initialise(model)
    return model


def initialise(model: Sa2VA) -> None:
    """Random weights anew for what InternVL does not hold, such that a signal keeps its variance on its way."""
    for part in (model.grounding_encoder, model.mlp1, model.text_hidden_fcs):
        part.apply(_keep_variance)
    # No loss trains the predicted IoU. At random it would choose among the three masks at random; constant, it always
    # takes the same one.
    nn.init.zeros_(model.grounding_encoder.sam2_model.sam_mask_decoder.iou_prediction_head.layers[-1].weight)


def _keep_variance(module: nn.Module) -> None:
    """Normal weights of variance 1 / fan-in (LeCun et al. 1998).

    PyTorch's own default has a third of it: without pretrained weights the signal fades on its way to the mask.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        weight = module.weight
        # A transposed convolution whose stride is its kernel adds up its input channels alone.
        fan_in = len(weight) if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
        nn.init.normal_(weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_counts(names: Sequence[str], places: Sequence[int], tokens: Sequence[int]) -> None:
    for name, met, wanted in zip(names, places, tokens, strict=True):
        if met != wanted:
            raise UserError(
                "image places in the text and visual tokens differ",
                where=f"sample {name}",
                met=f"{met} places",
                wanted=f"{wanted} ({IMAGE_TOKENS} a picture, the rest of its regions)",
            )
