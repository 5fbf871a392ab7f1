"""Held-out samples for tests."""

import numpy as np

from trainer.measure.panels import ConversationPanel, Panel, Span


def panel(caption: str, prompt: bool = True) -> Panel:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[4:9, 20:30] = True
    return Panel(
        "pair_1", image if prompt else None, image, mask, ~mask, caption, {"iou": 0.25, "swap_gap": float("nan")}
    )


def conversation_panel(frames: int = 2, targets: int = 2) -> ConversationPanel:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[4:9, 20:30] = True
    masks = [[np.roll(mask, 8 * n, 0) for n in range(targets)]] * frames
    return ConversationPanel(
        name="clip_1",
        kind="referring",
        turns=[
            ([Span("Segment "), Span("the <b>man</b>", 0), Span(".")], [Span("It is "), Span("[SEG] 1", 0), Span(".")]),
            ([Span("And "), Span("the dog", 1), Span("?")], [Span("[SEG] 2", 1)]),
        ],
        generated="Sure, [SEG].",
        frames=[image] * frames,
        regions=[],
        truth=masks,
        prediction=[[*reversed(of_frame)] for of_frame in masks],
        values={"iou": 0.25, "video_iou": 0.5, "empty_right": float("nan")},
    )
