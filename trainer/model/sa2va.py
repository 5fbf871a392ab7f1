"""Sa2VA, assembled from transformers' InternVL vision tower and language models and from the `sam2` package.

Parts have the names of the released checkpoints. In the shapes below B is pictures, M rows, L tokens per row, D the
language model's width and C the vision tower's. Rows are S sequences, see `trainer.model.rows.Rows`.
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
from trainer.model.attention import LENGTHS
from trainer.model.grounding import GroundingEncoder, SamFeatures
from trainer.model.prompts import IMAGE_TOKENS, Prompts
from trainer.model.rows import RowLengths, Rows
from trainer.model.tokenizer import byte_tokenizer
from trainer.transfer import to_device


def pixel_shuffle(tokens: Tensor) -> Tensor:
    """Join each 2 x 2 block of a square of tokens into one token (InternVL's version 2): (B, 4n, C) to (B, n, 4C).

    The tokens of a block are joined row by row.
    """
    count, length, width = tokens.shape
    side = int(length**0.5) // 2
    blocks = tokens.view(count, side, 2, side, 2, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(count, side * side, 4 * width)


class Sa2VA(nn.Module):
    """The model. Its methods are the passes; `trainer.objectives.step` calls them in one `forward`."""

    def __init__(self, architecture: Architecture, prompts: Prompts, *, hollow: bool = False) -> None:
        """Build with random weights; if `hollow`, without memory for vision tower and language model (meta device)."""
        super().__init__()
        architecture.check()
        self.architecture = architecture
        self.prompts = prompts
        vision = architecture.vision
        language = architecture.language
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
        """Class names of the layers of vision tower, language model and SAM 2's image encoder."""
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
        """Set the mode of all parts but frozen encoders, which stay in evaluation mode."""
        super().train(mode)
        for encoder in (self.vision_model, self.grounding_encoder.sam2_model.image_encoder):
            encoder.train(mode and next(encoder.parameters()).requires_grad)
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Encode normalised pictures (B, 3, 448, 448) float32 to visual tokens (B, 256, 4C), before the projector."""
        trains = next(self.vision_model.parameters()).requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            states = self.vision_model(pixel_values=pixel_values).last_hidden_state
            return pixel_shuffle(states[:, 1:])  # without the class token

    def embed_rows(
        self,
        rows: Rows,
        visual_tokens: Tensor | None,
        image_of_row: Tensor,
        regions: Tensor | None = None,
        phrase_embeddings: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Embed rows of tokens: (S, L, D).

        The `<IMG_CONTEXT>` positions of a row get, in this order, the 256 visual tokens of each of its pictures, and
        for each region the visual tokens of the last picture in the region's cells, row by row.

        Args:
            rows: M rows.
            visual_tokens: (B, 256, 4C), see `encode_image`; None where no row has a picture.
            image_of_row: (M,) int64; or (M, P) for rows of several pictures (tiles, frames) or none, -1 after the last.
                It and `regions` may be on the host: nothing waits for the device then.
            regions: (M, R, 16, 16) bool; none in a row without a picture.
            phrase_embeddings: (G, D), for the G places of `rows.replaced`.
            scale: (M, R, 16, 16), factors of the regions' visual tokens by cell.

        Raises:
            UserError: a row has more or fewer `<IMG_CONTEXT>` positions than visual tokens.
        """
        embeddings = self.embedding(rows.ids.flatten())
        images = image_of_row if image_of_row.ndim == 2 else image_of_row[:, None]
        if regions is not None:
            images = to_device(images, regions.device)
        has = images >= 0
        chosen = has[:, :, None].expand(-1, -1, IMAGE_TOKENS)
        if regions is not None:
            last = images.gather(1, (has.sum(1, keepdim=True) - 1).clamp_min(0))
            images = torch.cat([images, last.expand(-1, regions.shape[1])], 1)
            chosen = torch.cat([chosen, regions.flatten(2)], 1)
        _check_counts(rows.names, rows.contexts_per_row, chosen.sum((1, 2)).tolist())
        if visual_tokens is not None:
            row, slot, cell = chosen.nonzero(as_tuple=True)
            # `F.embedding`, because the gradient of indexing sums over a picture's objects in the order of threads.
            token = to_device(images[row, slot] * IMAGE_TOKENS + cell, visual_tokens.device)
            visual = F.embedding(token, self.mlp1(visual_tokens).flatten(0, 1))
            if scale is not None:
                unscaled = scale.new_ones(len(images), images.shape[1] - scale.shape[1], IMAGE_TOKENS)
                visual = visual * torch.cat([unscaled, scale.flatten(2)], 1)[row, slot, cell][:, None]
            embeddings = embeddings.index_put((rows.contexts,), visual.to(embeddings.dtype))
        if phrase_embeddings is not None:
            embeddings = embeddings.index_put((rows.replaced,), phrase_embeddings.to(embeddings.dtype))
        return embeddings.unflatten(0, rows.ids.shape)

    def run_language_model(
        self, embeddings: Tensor, attention: Tensor | RowLengths, positions: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Run the language model; return its states after the final norm, (S, L, D).

        Args:
            embeddings: (S, L, D).
            attention: of padded rows (S, past + L) int64, 0 on padding; of packed rows their lengths.
            positions: (S, L) int64.
            cache: keys and values of the past tokens; extended in place. For padded rows.
        """
        packed = isinstance(attention, RowLengths)
        states: Tensor = self.language_model.model(
            inputs_embeds=embeddings,
            # transformers hands a mask of four dimensions to the layers as it is; `attend` does not read this one.
            attention_mask=embeddings.new_zeros(1, 1, 0, 0) if packed else attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **({LENGTHS: attention} if packed else {}),
        ).last_hidden_state
        return states

    def answer_logits(self, states: Tensor, rows: Rows) -> Tensor:
        """Compute logits at the K places before a label, and only there: (K, V).

        Args:
            states: (S, L, D), of the rows.
            rows: M rows, with K labels in all.
        """
        logits: Tensor = self.language_model.lm_head(states.flatten(0, 1).index_select(0, rows.before_labels))
        return logits

    def encode_sam(self, g_pixel_values: Tensor) -> SamFeatures:
        """Encode pictures (B, 3, 1024, 1024) uint8 to features for `decode_masks`."""
        return self.grounding_encoder.encode(g_pixel_values)

    def decode_masks(
        self,
        states: Tensor,
        rows: Rows,
        sam_features: SamFeatures,
        image_of_mask: Tensor,
        seg_of_mask: Tensor | None = None,
    ) -> Tensor:
        """Decode N masks in one call of the mask decoder: logits (N, 256, 256) float32.

        Args:
            states: (S, L, D), of the rows.
            rows: M rows, with as many `[SEG]` as `rows.segs`.
            sam_features: of G pictures.
            image_of_mask: (N,) int64 in 0..G - 1.
            seg_of_mask: (N,) int64, the number of each mask's `[SEG]`; None: each in turn.
        """
        embeddings = self.text_hidden_fcs(states.flatten(0, 1).index_select(0, rows.segs))
        if seg_of_mask is not None:  # `index_select`, for the same gradient whatever the threads
            embeddings = embeddings.index_select(0, to_device(seg_of_mask, embeddings.device))
        return self.grounding_encoder.decode(sam_features, image_of_mask, embeddings)


def build(preset: str) -> Sa2VA:
    """Build a model with random weights, float32, on the CPU. Raises `UserError` for an unknown preset."""
    model = Sa2VA(preset_named(preset), preset_prompts(preset))
    initialise(model)
    return model


def preset_prompts(preset: str) -> Prompts:
    """Return the prompts of the model that `build` builds. Raises `UserError` for an unknown preset."""
    architecture = preset_named(preset)
    return Prompts(byte_tokenizer(), architecture.template, architecture.language.vocab_size)


def initialise(model: Sa2VA) -> None:
    """Draw the weights that no InternVL has again, such that a signal keeps its variance from layer to layer."""
    for part in (model.grounding_encoder, model.mlp1, model.text_hidden_fcs):
        part.apply(_keep_variance)
    # No loss trains the predicted IoU. Random weights would choose a random one of the three masks; equal scores always
    # choose the same one.
    nn.init.zeros_(model.grounding_encoder.sam2_model.sam_mask_decoder.iou_prediction_head.layers[-1].weight)


def _keep_variance(module: nn.Module) -> None:
    """Draw normal weights of variance 1 / fan-in (LeCun et al. 1998).

    PyTorch's default has a third of this variance: without pretrained weights the signal fades before the mask.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        weight = module.weight
        # A transposed convolution whose stride is its kernel adds up its input channels alone.
        fan_in = len(weight) if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
        nn.init.normal_(weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_counts(names: Sequence[str], places: Sequence[int], tokens: Sequence[int]) -> None:
    """Raise `UserError` for a row whose `<IMG_CONTEXT>` positions and visual tokens differ in number."""
    for name, place_count, token_count in zip(names, places, tokens, strict=True):
        if place_count != token_count:
            raise UserError(
                "image places in the text and visual tokens differ",
                where=f"sample {name}",
                met=f"{place_count} places",
                wanted=f"{token_count} ({IMAGE_TOKENS} a picture, the rest of its regions)",
            )
