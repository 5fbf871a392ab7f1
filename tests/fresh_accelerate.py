"""Accelerate's state, which runs of one test process would share."""

from __future__ import annotations

from accelerate.state import AcceleratorState, GradientState, PartialState


def reset_accelerate() -> None:
    """Forget Accelerate's state, so that the next run of this process begins as the first one does."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
