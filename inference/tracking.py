"""Track objects through a video with SAM 2's memory, prompted by language embeddings.

As in the official inference, every prompted frame is a conditioning frame, object scores change only the object pointer
(they blank no mask), and memories are kept in bfloat16 unless float32 is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline import resize
from trainer.model.grounding import IMAGE_SIZE, Decoded, GroundingEncoder, SamFeatures


class Tracker:
    """SAM 2's memory of N objects in one video. Call `prompt` for the first frames, then `follow`, in order."""

    def __init__(self, encoder: GroundingEncoder, frames: int, memory_dtype: torch.dtype = torch.bfloat16) -> None:
        """Begin with an empty memory.

        Args:
            encoder: SAM 2.
            frames: number of frames of the video.
            memory_dtype: dtype of the memory maps: (N, 64, 64, 64) per frame in the released models. Read are
                the last 7 and those of prompted frames. float32 takes twice the memory.
        """
        self._memory_dtype = memory_dtype
        self._encoder = encoder
        self._sam = encoder.sam2_model
        self._frames = frames
        self._memory: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self._position_maps: list[Tensor] | None = None

    def prompt(self, frame: int, sam_features: SamFeatures, embeddings: Tensor) -> Tensor:
        """Segment frame number `frame` with phrase embeddings (N, C), and remember it.

        Args:
            frame: the frame's number, from 0.
            sam_features: features of the frame, B = 1.
            embeddings: (N, C), one per object.

        Returns:
            (N, 256, 256) float32 mask logits.
        """
        count = len(embeddings)
        maps = sam_features.embedding + self._sam.no_mem_embed.view(1, -1, 1, 1)
        decoded = self._encoder.decode_maps(
            maps.expand(count, -1, -1, -1), _repeat(sam_features.high, count), embeddings
        )
        self._remember("cond_frame_outputs", frame, sam_features, decoded)
        return decoded.logits

    def follow(self, frame: int, sam_features: SamFeatures) -> Tensor:
        """Segment frame number `frame` from the memory of earlier frames: (N, 256, 256) float32 mask logits."""
        count = len(next(iter(self._memory["cond_frame_outputs"].values()))["obj_ptr"])
        maps = self._sam._prepare_memory_conditioned_features(
            frame_idx=frame,
            is_init_cond_frame=False,
            current_vision_feats=[_sequence(sam_features.embedding, count)],
            current_vision_pos_embeds=[_sequence(self._encoder.positions(sam_features.embedding), count)],
            feat_sizes=[tuple(sam_features.embedding.shape[2:])],
            output_dict=self._memory,
            num_frames=self._frames,
        )
        decoded = self._encoder.decode_maps(maps, _repeat(sam_features.high, count), None)
        self._remember("non_cond_frame_outputs", frame, sam_features, decoded)
        return decoded.logits

    def _remember(self, kind: str, frame: int, sam_features: SamFeatures, decoded: Decoded) -> None:
        sam = self._sam
        features, position_maps = sam._encode_new_memory(
            current_vision_feats=[_sequence(sam_features.embedding, len(decoded.logits))],
            feat_sizes=[tuple(sam_features.embedding.shape[2:])],
            pred_masks_high_res=resize.sam_logits(decoded.logits, IMAGE_SIZE)[:, None],
            object_score_logits=decoded.score,
            is_mask_from_pts=kind == "cond_frame_outputs",
        )
        visible = (decoded.score > 0).float()
        pointer = visible * sam.obj_ptr_proj(decoded.token) + (1 - visible) * sam.no_obj_ptr
        self._position_maps = self._position_maps or position_maps  # the same for every frame
        memory = self._memory[kind]
        memory[frame] = {
            "maskmem_features": features.to(self._memory_dtype),
            "maskmem_pos_enc": self._position_maps,
            "obj_ptr": pointer,
        }
        if kind == "non_cond_frame_outputs":  # older memories are not read
            memory.pop(frame - max(sam.max_obj_ptrs_in_encoder, sam.num_maskmem), None)


def _repeat(maps: list[Tensor], count: int) -> list[Tensor]:
    return [level.expand(count, -1, -1, -1) for level in maps]


def _sequence(maps: Tensor, count: int) -> Tensor:
    """Flatten maps (1, C, H, W) and repeat them: (H * W, count, C)."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
