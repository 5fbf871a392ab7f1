"""Track objects through a video with SAM 2's memory, prompted by language embeddings or by masks.

With embeddings, as in the official inference, every prompted frame is a conditioning frame, and object scores change
only the object pointer (they blank no mask). With masks, as in Sa2VA-i's inference, SAM 2 works with the mask decoder
that it was released with, and as it does by itself. Memories are kept in bfloat16 unless float32 is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import resize
from shards.errors import UserError
from trainer.model.grounding import IMAGE_SIZE, GroundingEncoder, SamFeatures

FRAMES_SEEN = 5
"""Frames of a video that the language model sees and that prompt SAM 2, as in Sa2VA's own training."""
VIDEO_FRAMES = ("first", "uniform")
PROPAGATE = ("tuned", "sam2")


def frames_seen(count: int, choice: str, number: int | None = None) -> list[int]:
    """Return the numbers of the frames that the language model sees, of a video of `count` frames, ascending.

    Args:
        count: 1 or more.
        choice: "first": the first ones, as in Sa2VA. "uniform": spread over the video, as in Sa2VA-i; a video of
            fewer frames is seen whole.
        number: how many; None: 5.

    >>> frames_seen(100, "uniform")
    [0, 24, 49, 74, 99]
    """
    number = FRAMES_SEEN if number is None else number
    if choice == "first":
        return list(range(min(number, count)))
    if choice != "uniform":
        raise UserError("unknown choice of a video's frames", met=choice, wanted=" or ".join(VIDEO_FRAMES))
    return sorted({*np.linspace(0, count - 1, number, dtype=int).tolist()})


class Tracker:
    """SAM 2's memory of N objects in one video.

    Prompt frames first, with `prompt` or with `prompt_with_masks`. Then call `follow` for the others, in order.
    """

    def __init__(
        self,
        encoder: GroundingEncoder,
        frames: int,
        memory_dtype: torch.dtype = torch.bfloat16,
        *,
        original_decoder: bool = False,
    ) -> None:
        """Begin with an empty memory.

        Args:
            encoder: SAM 2.
            frames: number of frames of the video.
            memory_dtype: dtype of the memory maps: (N, 64, 64, 64) per frame in the released models. Read are
                the last 7 and those of prompted frames. float32 takes twice the memory.
            original_decoder: follow with `encoder.original_mask_decoder`, as SAM 2 does by itself.
        """
        self._memory_dtype = memory_dtype
        self._encoder = encoder
        self._sam = encoder.original_sam() if original_decoder else encoder.sam2_model
        self._original = original_decoder
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
        maps = sam_features.embedding + self._sam.no_mem_embed.view(1, -1, 1, 1)
        return self._decode("cond_frame_outputs", frame, sam_features, _repeat([maps], len(embeddings))[0], embeddings)

    def prompt_with_masks(self, frame: int, sam_features: SamFeatures, masks: Tensor) -> Tensor:
        """Remember frame number `frame` with masks of its objects.

        Args:
            frame: the frame's number, from 0.
            sam_features: features of the frame for the original decoder, B = 1.
            masks: (N, 1, 1024, 1024) float32, 0 and 1. An empty one says that its object is not visible.

        Returns:
            (N, 256, 256) float32 mask logits: the masks themselves.
        """
        maps, *high = _repeat([sam_features.embedding, *sam_features.high], len(masks))
        _, _, _, logits, _, pointer, score = self._sam._use_mask_as_output(maps, high, masks)
        return self._remember("cond_frame_outputs", frame, sam_features, logits[:, 0], score, pointer)

    def follow(self, frame: int, sam_features: SamFeatures) -> Tensor:
        """Segment frame number `frame` from the memory of other frames: (N, 256, 256) float32 mask logits."""
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
        if not self._original:
            return self._decode("non_cond_frame_outputs", frame, sam_features, maps, None)
        _, _, _, logits, _, pointer, score = self._sam._forward_sam_heads(
            maps,
            high_res_features=_repeat(sam_features.high, count),
            multimask_output=self._sam._use_multimask(False, None),
        )
        return self._remember("non_cond_frame_outputs", frame, sam_features, logits[:, 0], score, pointer)

    def _decode(
        self, kind: str, frame: int, sam_features: SamFeatures, maps: Tensor, embeddings: Tensor | None
    ) -> Tensor:
        """Decode with the decoder that Sa2VA trained, and remember the frame."""
        decoded = self._encoder.decode_maps(maps, _repeat(sam_features.high, len(maps)), embeddings)
        visible = (decoded.score > 0).float()
        pointer = visible * self._sam.obj_ptr_proj(decoded.token) + (1 - visible) * self._sam.no_obj_ptr
        return self._remember(kind, frame, sam_features, decoded.logits, decoded.score, pointer)

    def _remember(
        self, kind: str, frame: int, sam_features: SamFeatures, logits: Tensor, score: Tensor, pointer: Tensor
    ) -> Tensor:
        """Encode a frame's masks into the memory; return the masks' logits (N, 256, 256)."""
        sam = self._sam
        features, position_maps = sam._encode_new_memory(
            current_vision_feats=[_sequence(sam_features.embedding, len(logits))],
            feat_sizes=[tuple(sam_features.embedding.shape[2:])],
            pred_masks_high_res=resize.sam_logits(logits, IMAGE_SIZE)[:, None],
            object_score_logits=score,
            is_mask_from_pts=kind == "cond_frame_outputs",
        )
        self._position_maps = self._position_maps or position_maps  # the same for every frame
        memory = self._memory[kind]
        memory[frame] = {
            "maskmem_features": features.to(self._memory_dtype),
            "maskmem_pos_enc": self._position_maps,
            "obj_ptr": pointer,
        }
        if kind == "non_cond_frame_outputs":
            self._forget(memory, frame)
        return logits

    def _forget(self, memory: dict[int, dict[str, Any]], frame: int) -> None:
        """Drop what SAM 2 does not read after `frame`: maps older than the last 7, and older pointers of objects."""
        maps = frame - self._sam.num_maskmem
        pointers = frame - max(self._sam.max_obj_ptrs_in_encoder, self._sam.num_maskmem)
        for old in [number for number in memory if number <= maps]:
            memory[old] = {"obj_ptr": memory[old]["obj_ptr"]}
            if old <= pointers:
                del memory[old]


def _repeat(maps: list[Tensor], count: int) -> list[Tensor]:
    return [level.expand(count, -1, -1, -1) for level in maps]


def _sequence(maps: Tensor, count: int) -> Tensor:
    """Flatten maps (1, C, H, W) and repeat them: (H * W, count, C)."""
    return maps.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
