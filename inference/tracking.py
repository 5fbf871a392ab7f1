"""Objects through a video: SAM 2's memory, started by language embeddings. SAM 2's own parts do all the work.

As in the official inference every prompted frame is a conditioning frame, object scores move the object pointer alone
(no mask is blanked by them), and memories are kept in bfloat16 unless float32 is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline import resize
from trainer.model.grounding import IMAGE_SIZE, Decoded, GroundingEncoder, SamFeatures


class Tracker:
    """The memory of N objects of one video. Frames come in order: first those that are prompted."""

    def __init__(self, encoder: GroundingEncoder, frames: int, memory_dtype: torch.dtype = torch.bfloat16) -> None:
        """Remember nothing yet.

        Args:
            encoder: SAM 2.
            frames: how many the video has.
            memory_dtype: of the memories' maps, (N, 64, 64, 64) a frame in the released models, of which 7 and those
                of prompted frames are read. float32 takes twice the memory.
        """
        self._memory_dtype = memory_dtype
        self._encoder, self._sam, self._frames = encoder, encoder.sam2_model, frames
        self._memory: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self._places: list[Tensor] | None = None

    def prompt(self, frame: int, sam_features: SamFeatures, embeddings: Tensor) -> Tensor:
        """Segment frame number `frame`, of features `looked` (B = 1), by embeddings (N, C).

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
        """Segment frame number `frame` by what is remembered of the frames before: (N, 256, 256) float32."""
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
        features, places = sam._encode_new_memory(
            current_vision_feats=[_sequence(sam_features.embedding, len(decoded.logits))],
            feat_sizes=[tuple(sam_features.embedding.shape[2:])],
            pred_masks_high_res=resize.sam_logits(decoded.logits, IMAGE_SIZE)[:, None],
            object_score_logits=decoded.score,
            is_mask_from_pts=kind == "cond_frame_outputs",
        )
        there = (decoded.score > 0).float()
        pointer = there * sam.obj_ptr_proj(decoded.token) + (1 - there) * sam.no_obj_ptr
        self._places = self._places or places  # the same for every frame
        memory = self._memory[kind]
        memory[frame] = {
            "maskmem_features": features.to(self._memory_dtype),
            "maskmem_pos_enc": self._places,
            "obj_ptr": pointer,
        }
        if kind == "non_cond_frame_outputs":  # nothing looks further back
            memory.pop(frame - max(sam.max_obj_ptrs_in_encoder, sam.num_maskmem), None)


def _repeat(maps: list[Tensor], count: int) -> list[Tensor]:
    return [level.expand(count, -1, -1, -1) for level in maps]


def _sequence(maps: Tensor, count: int) -> Tensor:
    """(1, C, H, W) to (H * W, count, C)."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
