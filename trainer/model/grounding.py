"""SAM 2 as Sa2VA uses it: the prompt of a mask is an embedding from the language model."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sam2.build_sam import build_sam2
from torch import Tensor, nn

from trainer.model.architecture import Sam
from trainer.transfer import to_device

IMAGE_SIZE = 1024
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) float32 each, filled on the device: no copy makes the host wait.

    Not buffers: a model cast to bfloat16 would round them. Not kept: the first call may be one that only counts
    operations (`trainer.model.flops`), whose tensors have no values.
    """
    mean, std = (
        torch.cat([torch.full((1, 1, 1), value, dtype=torch.float32, device=device) for value in values])
        for values in (MEAN, STD)
    )
    return mean, std


@dataclass(frozen=True)
class SamFeatures:
    """Features of B pictures for the mask decoder; C is SAM 2's width (256 in the released models)."""

    embedding: Tensor
    """(B, C, 64, 64), before `no_mem_embed` or memory is added."""
    high: list[Tensor]
    """Finer maps, (B, C / 8, 256, 256) and (B, C / 4, 128, 128)."""


@dataclass(frozen=True)
class Decoded:
    """Output of the mask decoder for N objects."""

    logits: Tensor
    """(N, 256, 256) float32."""
    token: Tensor
    """(N, C), the output token of the chosen mask."""
    score: Tensor
    """(N, 1) logits; above 0 where the object is visible."""


class _NoPositions(nn.Module):
    """Replaces the position encodings of the neck's maps: half a gigabyte per batch, for SAM 2's memory alone."""

    def forward(self, features: Tensor) -> Tensor:
        return features.new_empty(0)


class GroundingEncoder(nn.Module):
    """SAM 2's image encoder, prompt encoder and mask decoder."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam2_model = build_sam2(
            sam.sam_config, device="cpu", mode="train", hydra_overrides_extra=[*sam.sam_overrides]
        )
        neck = self.sam2_model.image_encoder.neck
        self.positions: nn.Module = neck.position_encoding
        """Position encoding of maps (N, C, 64, 64), without parameters; for tracking alone."""
        neck.position_encoding = _NoPositions()
        self.original_mask_decoder: nn.Module | None = None
        """SAM 2's mask decoder as it was released, where a model has it beside the one of `sam2_model`, which trains.

        See `add_original_decoder`.
        """

    def add_original_decoder(self) -> nn.Module:
        """Add a second mask decoder, `original_mask_decoder`, and return it: a frozen copy, to be filled with weights.

        With it, SAM 2's memory can follow objects as if Sa2VA's training had never changed the mask decoder.
        """
        self.original_mask_decoder = deepcopy(self.sam2_model.sam_mask_decoder).requires_grad_(False)
        return self.original_mask_decoder

    def original_sam(self) -> Any:
        """Return SAM 2 with `original_mask_decoder` in place of its own; all weights are shared with this module."""
        sam = copy(self.sam2_model)
        sam._modules = {**sam._modules, "sam_mask_decoder": self.original_mask_decoder}
        return sam

    @property
    def width(self) -> int:
        """C, the length of a prompt token."""
        return int(self.sam2_model.hidden_dim)

    def normalise(self, g_pixel_values: Tensor, rounded: bool = False) -> Tensor:
        """Normalise (B, 3, 1024, 1024) uint8 to float32: divided by 255, minus mean, divided by standard deviation.

        `rounded`: round mean and standard deviation to bfloat16, as in the official inference.
        """
        if g_pixel_values.dtype != torch.uint8:
            raise TypeError(f"g_pixel_values is uint8 in 0..255, not {g_pixel_values.dtype}: it is normalised here")
        mean, std = _mean_and_std(g_pixel_values.device)
        if rounded:
            mean = mean.bfloat16().float()
            std = std.bfloat16().float()
        return g_pixel_values.float().div_(255).sub_(mean).div_(std)

    def encode(self, g_pixel_values: Tensor, rounded: bool = False) -> SamFeatures:
        """Encode pictures (B, 3, 1024, 1024) uint8. `rounded`: see `normalise`."""
        return self.features_for(self.sam2_model.sam_mask_decoder, self.encode_maps(g_pixel_values, rounded))

    def encode_maps(self, g_pixel_values: Tensor, rounded: bool = False) -> list[Tensor]:
        """Encode pictures to the image encoder's maps, (B, C, S, S) with S = 256, 128, 64. Arguments as in `encode`."""
        encoder = self.sam2_model.image_encoder
        trains = next(encoder.parameters()).requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            maps: list[Tensor] = encoder(self.normalise(g_pixel_values, rounded))["backbone_fpn"]
        return maps

    def features_for(self, decoder: Any, maps: list[Tensor]) -> SamFeatures:
        """Return the features of `encode_maps` for a mask decoder: each has layers of its own for the finer maps.

        SAM 2's `forward_image` is not used: it calls these layers without gradient where the encoder is frozen, but
        they train with the decoder.
        """
        s0, s1, embedding = maps
        return SamFeatures(embedding, [decoder.conv_s0(s0), decoder.conv_s1(s1)])

    def decode(self, features: SamFeatures, image_of_object: Tensor, embeddings: Tensor) -> Tensor:
        """Decode mask logits of objects.

        Args:
            features: of B pictures.
            image_of_object: (N,) int64, the picture of each object.
            embeddings: (N, C), one prompt token per object.

        Returns:
            (N, 256, 256) float32.
        """
        image_of_object = to_device(image_of_object, embeddings.device)
        # `index_select`, because the gradient of indexing sums over a picture's objects in the order of threads.
        maps = (features.embedding + self.sam2_model.no_mem_embed.view(1, -1, 1, 1)).index_select(0, image_of_object)
        levels = [level.index_select(0, image_of_object) for level in features.high]
        return self.decode_maps(maps, levels, embeddings).logits

    def decode_maps(self, maps: Tensor, high: list[Tensor], embeddings: Tensor | None) -> Decoded:
        """Decode one object per map: of the decoder's three masks, the one with the highest predicted IoU.

        Unlike in SAM 2's head, the object score blanks no mask.

        Args:
            maps: (N, C, 64, 64), after `no_mem_embed` or memory was added.
            high: (N, C / 8, 256, 256) and (N, C / 4, 128, 128).
            embeddings: (N, C), one prompt token per object; None where memory alone is the prompt.
        """
        sam = self.sam2_model
        device = maps.device
        count = maps.shape[0]  # not len(), which torch.export would make a constant
        # One padding point: the prompt encoder was trained with one, without it the logits are far off.
        coordinates = torch.zeros(count, 1, 2, device=device)
        kinds = torch.full((count, 1), -1, dtype=torch.int32, device=device)
        sparse, dense = sam.sam_prompt_encoder(points=(coordinates, kinds), boxes=None, masks=None)
        if embeddings is not None:
            sparse = torch.cat([sparse, embeddings[:, None].to(sparse.dtype)], 1)
        masks, predicted_iou, tokens, score = sam.sam_mask_decoder(
            image_embeddings=maps,
            image_pe=sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=False,
            high_res_features=high,
        )
        row = torch.arange(count, device=device)
        best = predicted_iou.argmax(1)
        return Decoded(masks[row, best].float(), tokens[row, best], score)
