"""SAM 2 as Sa2VA uses it: a language embedding is one more token of the prompt, and becomes a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sam2.build_sam import build_sam2
from torch import Tensor, nn

from trainer.model.architecture import Sam

IMAGE_SIZE = 1024
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SamFeatures:
    """A picture's features for the mask decoder; C is SAM 2's width (256 in the released models)."""

    embedding: Tensor
    """(B, C, 64, 64), neither `no_mem_embed` nor memory in it yet."""
    high: list[Tensor]
    """(B, C / 8, 256, 256) and (B, C / 4, 128, 128)."""


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says of N objects."""

    logits: Tensor
    """(N, 256, 256) float32."""
    token: Tensor
    """(N, C), the output token of the mask that was taken."""
    score: Tensor
    """(N, 1), above 0 where the object is there."""


class _NoPositions(nn.Module):
    """Stands in for the positions of the neck's maps: half a gigabyte a batch that only SAM 2's memory reads."""

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
        """(N, C, 64, 64) to the positions of its cells; nothing is learnt in it. Tracking alone asks."""
        neck.position_encoding = _NoPositions()

    @property
    def width(self) -> int:
        """C, the length of a prompt token."""
        return int(self.sam2_model.hidden_dim)

    def normalise(self, g_pixel_values: Tensor, rounded: bool = False) -> Tensor:
        """(B, 3, 1024, 1024) uint8 to float32, over 255, minus mean, over standard deviation.

        `rounded`: mean and standard deviation rounded to bfloat16, as the official inference has them.
        """
        if g_pixel_values.dtype != torch.uint8:
            raise TypeError(f"g_pixel_values is uint8 in 0..255, not {g_pixel_values.dtype}: it is normalised here")
        # No buffers: a model cast to bfloat16 would round them.
        mean, std = torch.tensor([MEAN, STD], device=g_pixel_values.device).view(2, 3, 1, 1)
        if rounded:
            mean, std = mean.bfloat16().float(), std.bfloat16().float()
        return g_pixel_values.float().div_(255).sub_(mean).div_(std)

    def encode(self, g_pixel_values: Tensor, rounded: bool = False) -> SamFeatures:
        """Features of pictures (B, 3, 1024, 1024) uint8, once a picture, however many objects it holds.

        SAM 2's own `forward_image` also calls `conv_s0` and `conv_s1`, which belong to the mask decoder and train
        with it; so the frozen encoder and these two are called apart. `rounded`: see `normalise`.
        """
        encoder, decoder = self.sam2_model.image_encoder, self.sam2_model.sam_mask_decoder
        trains = next(encoder.parameters()).requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            s0, s1, embedding = encoder(self.normalise(g_pixel_values, rounded))["backbone_fpn"]
        return SamFeatures(embedding, [decoder.conv_s0(s0), decoder.conv_s1(s1)])

    def decode(self, features: SamFeatures, image_of_object: Tensor, embeddings: Tensor) -> Tensor:
        """Mask logits of objects.

        Args:
            features: of B pictures.
            image_of_object: (N,) int64, the picture of each object.
            embeddings: (N, C), one prompt token an object.

        Returns:
            (N, 256, 256) float32.
        """
        # Not by an index, whose gradient adds up the objects of a picture in the order of threads.
        maps = (features.embedding + self.sam2_model.no_mem_embed.view(1, -1, 1, 1)).index_select(0, image_of_object)
        levels = [level.index_select(0, image_of_object) for level in features.high]
        return self.decode_maps(maps, levels, embeddings).logits

    def decode_maps(self, maps: Tensor, high: list[Tensor], embeddings: Tensor | None) -> Decoded:
        """Decode objects from maps of their own: of the decoder's three masks, the one with the highest predicted IoU.

        Unlike SAM 2's own head nothing is blanked by the object score.

        Args:
            maps: (N, C, 64, 64), with `no_mem_embed` or memory in it.
            high: (N, C / 8, 256, 256) and (N, C / 4, 128, 128).
            embeddings: (N, C), one prompt token an object; None where memory alone says what to segment.
        """
        sam, count, device = self.sam2_model, maps.shape[0], maps.device  # not len(), which torch.export would fix
        # One padding point: the prompt encoder was trained with one, without it the logits are far off.
        points = torch.zeros(count, 1, 2, device=device), torch.full((count, 1), -1, dtype=torch.int32, device=device)
        sparse, dense = sam.sam_prompt_encoder(points=points, boxes=None, masks=None)
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
        row, best = torch.arange(count, device=device), predicted_iou.argmax(1)
        return Decoded(masks[row, best].float(), tokens[row, best], score)
