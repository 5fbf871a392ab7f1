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
    """(B, C, 64, 64)."""
    high: list[Tensor]
    """(B, C / 8, 256, 256) and (B, C / 4, 128, 128)."""


class _NoPositions(nn.Module):
    """Stands in for the positions of the neck's maps: half a gigabyte a batch that only SAM 2's memory reads."""

    def forward(self, features: Tensor) -> Tensor:
        return features.new_empty(0)


class GroundingEncoder(nn.Module):
    """SAM 2's image encoder, prompt encoder and mask decoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam2_model = build_sam2(
            sam.sam_config, device="cpu", mode="train", hydra_overrides_extra=[*sam.sam_overrides]
        )
        self.sam2_model.image_encoder.neck.position_encoding = _NoPositions()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """C, the length of a prompt token."""
        return int(self.sam2_model.hidden_dim)

    def normalise(self, g_pixel_values: Tensor) -> Tensor:
        """(B, 3, 1024, 1024) uint8 to float32, over 255, minus mean, over standard deviation."""
        if g_pixel_values.dtype != torch.uint8:
            raise TypeError(f"g_pixel_values is uint8 in 0..255, not {g_pixel_values.dtype}: it is normalised here")
        return g_pixel_values.float().div_(255).sub_(self.mean).div_(self.std)

    def encode(self, g_pixel_values: Tensor) -> SamFeatures:
        """Features of pictures (B, 3, 1024, 1024) uint8, once a picture, however many objects it holds.

        SAM 2's own `forward_image` also calls `conv_s0` and `conv_s1`, which belong to the mask decoder and train
        with it; so the frozen encoder and these two are called apart.
        """
        encoder, decoder = self.sam2_model.image_encoder, self.sam2_model.sam_mask_decoder
        trains = next(encoder.parameters()).requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            s0, s1, embedding = encoder(self.normalise(g_pixel_values))["backbone_fpn"]
        embedding = embedding + self.sam2_model.no_mem_embed.view(1, -1, 1, 1)
        return SamFeatures(embedding, [decoder.conv_s0(s0), decoder.conv_s1(s1)])

    def decode(self, features: SamFeatures, image_of_object: Tensor, embeddings: Tensor) -> Tensor:
        """Mask logits of objects.

        Of the decoder's three masks the one with the highest predicted IoU is taken. Unlike SAM 2's own head nothing
        is blanked by the object score.

        Args:
            features: of B pictures.
            image_of_object: (N,) int64, the picture of each object.
            embeddings: (N, C), one prompt token an object.

        Returns:
            (N, 256, 256) float32.
        """
        sam, count = self.sam2_model, embeddings.shape[0]  # len() would be a constant in an ONNX trace
        # One padding point: the prompt encoder was trained with one, without it the logits are far off.
        points = torch.zeros(count, 1, 2, device=embeddings.device)
        labels = torch.full((count, 1), -1, dtype=torch.int32, device=embeddings.device)
        sparse, dense = sam.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        masks, predicted_iou, _, _ = sam.sam_mask_decoder(
            image_embeddings=features.embedding[image_of_object],
            image_pe=sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, embeddings[:, None].to(sparse.dtype)], 1),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=False,
            high_res_features=[level[image_of_object] for level in features.high],
        )
        best = predicted_iou.argmax(1)
        return masks[torch.arange(count, device=best.device), best].float()
